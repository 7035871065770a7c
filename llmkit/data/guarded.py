"""A worker process with limits, for code that hostile input can make hang, crash or take all memory.

A parser of HTML or PDF is a large program in C that reads what strangers wrote. It runs here in a process of its own,
one for many documents; what it does to that process costs one document, and the next finds a new process.
"""

from __future__ import annotations

import atexit
import importlib
import io
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

Kind = Literal["error", "time", "memory", "crash"]

_BATCH = 32
_BATCH_BYTES = 1 << 22
_PATIENCE = 10
"""An answer may take this many times the computing time: a machine with other work gives a process less than all."""
_GATHERED_SECONDS = 0.05
"""Results wait this long for others to travel with."""
_HASTY_SECONDS = 0.5
"""Many calls that travel together take less each. One that takes longer ends the process early, and is made once more
by itself with all its time, so that a call that never ends costs its time once and not twice."""
_START = "import sys; from llmkit.data.guarded import _serve; _serve(*sys.argv[1:])"


class GuardError(Exception):
    """A call gave no result.

    Args:
        reason: what happened, as half of a sentence ("took more than 10 s of computing time").
        kind: "error" (the function raised), "time", "memory", or "crash" of the process.
    """

    def __init__(self, reason: str, kind: Kind = "error") -> None:
        super().__init__(reason)
        self.reason = reason
        self.kind = kind


class Guarded:
    """A function that is called in a process of its own, within limits.

    Arguments and results are plain values: None, bool, int, float, str, bytes, and lists, tuples, dicts and sets of
    them. The process starts at the first call and stays for the next ones; one that was killed or has crashed is
    replaced. Whether a call succeeds does not depend on the calls before it: what runs out of memory or crashes in a
    process that has worked before is tried once more in a new one. Time is computing time, so that a busy machine
    refuses nothing that an idle one reads; a function that waits is given up after ten times as long.

    Not for use by several threads at once. Closed by `close` or as a context manager; it ends with
    its parent at the latest.

    Args:
        function: "module:name" of a function of one argument.
        seconds: computing time for one call.
        megabytes: memory for one call, in MiB of address space beyond what the process has once the module is loaded.
    """

    def __init__(self, function: str, *, seconds: float, megabytes: int) -> None:
        self._function = function
        self._seconds = seconds
        self._megabytes = megabytes
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._fresh = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def call(self, argument: Any) -> Any:
        """The function's result.

        Raises:
            GuardError: it raised, took too long or too much memory, or crashed.
        pickle.UnpicklingError: the result is no plain value.
        """
        (result,) = self._run([argument])
        if isinstance(result, GuardError):
            raise result
        return result

    def map(self, arguments: Iterable[Any]) -> Iterator[Any]:
        """The result of each call, or the `GuardError`, in the order of the arguments.

        Much cheaper than `call` for each: arguments travel many at a time. They are taken up to 32, or some 4 MiB,
        ahead of the results.
        """
        batch: list[Any] = []
        size = 0
        for argument in arguments:
            batch.append(argument)
            size += _size(argument)
            if len(batch) == _BATCH or size >= _BATCH_BYTES:
                yield from self._run(batch)
                batch, size = [], 0
        yield from self._run(batch)

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None

    def _run(self, arguments: Sequence[Any]) -> list[Any]:
        results: list[Any] = []
        together = len(arguments) > 1
        while len(results) < len(arguments):
            found, ended = self._attempt(arguments[len(results) :], together)
            results += found
            # Which call ended the process is found by having the results one by one.
            together = together and not ended
        return results

    def _attempt(self, arguments: Sequence[Any], together: bool) -> tuple[list[Any], bool]:
        """Results up to the call that ends the process, its error included once it must stand; whether one did."""
        connection = self._start()
        results: list[Any] = []
        try:
            connection.send_bytes(pickle.dumps((together, list(arguments)), protocol=5))
            while len(results) < len(arguments):
                results += map(_outcome, _plain(connection.recv_bytes()))
                self._fresh = False
        except (EOFError, OSError):
            error = self._ended()
        except pickle.UnpicklingError:
            self.close()
            raise
        else:
            return results, False
        if not together and (self._fresh or error.kind == "time"):
            results.append(error)
        self.close()
        return results, True

    def _start(self) -> Connection:
        if self._connection is not None:
            return self._connection
        ours, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-c", _START, str(theirs.fileno()), self._function, str(self._seconds)]
            self._process = subprocess.Popen(
                [*command, str(self._megabytes)],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._connection = ours
        self._fresh = True
        try:
            problem = _plain(ours.recv_bytes())
        except (EOFError, OSError):
            problem = f"it ended with code {self._process.wait()}"
        if problem is not None:
            self.close()
            raise RuntimeError(f"the worker for {self._function} does not start: {problem}")
        return ours

    def _ended(self) -> GuardError:
        assert self._process is not None
        code = self._process.wait()
        if code == -signal.SIGPROF:
            return GuardError(f"took more than {self._seconds:g} s of computing time", "time")
        if code == -signal.SIGALRM:
            return GuardError(f"gave no result in {self._seconds * _PATIENCE:g} s", "time")
        if code == _OUT_OF_MEMORY:
            return GuardError(f"took more than {self._megabytes:,} MiB of memory", "memory")
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        return GuardError(f"crashed its process ({name})", "crash")


@lru_cache(maxsize=8)
def _shared(process: int, function: str, seconds: float, megabytes: int) -> Guarded:
    guard = Guarded(function, seconds=seconds, megabytes=megabytes)
    atexit.register(guard.close)
    return guard


def shared_guard(function: str, *, seconds: float, megabytes: int) -> Guarded:
    """The worker that everything in this process uses for a function with these limits: it is started once."""
    # By the process, since a forked child must not talk to its parent's worker.
    return _shared(os.getpid(), function, seconds, megabytes)


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain values alone: a worker that hostile input took over gets no way into its parent."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"a worker's message holds a {module_name}.{global_name}")


def _plain(message: bytes) -> Any:
    return _PlainUnpickler(io.BytesIO(message)).load()


def _outcome(answer: tuple[bool, Any]) -> Any:
    succeeded, value = answer
    return value if succeeded else GuardError(value)


def _size(value: Any) -> int:
    """About how many bytes a value takes in a message."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple | set) else 8


_OUT_OF_MEMORY = 77
"""Exit code of a worker that could not get memory."""


def _serve(descriptor: str, function: str, seconds: str, megabytes: str) -> None:
    """The worker: load the function, take on the limits, then answer each batch of arguments, one by one."""
    # Ctrl-C reaches the whole group of processes; it is for the parent to say when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(int(descriptor)) as connection:
        os.set_inheritable(int(descriptor), False)
        try:
            module, _, name = function.partition(":")
            called = getattr(importlib.import_module(module), name)
        except Exception as error:
            connection.send_bytes(pickle.dumps(f"{type(error).__name__}: {error}"))
            return
        _limit_memory(int(megabytes))
        connection.send_bytes(pickle.dumps(None))
        try:
            while True:
                _answer_batch(connection, called, float(seconds))
        except EOFError:
            return
        except MemoryError:
            # What failed may have left the process in any state.
            os._exit(_OUT_OF_MEMORY)


def _answer_batch(connection: Connection, function: Any, seconds: float) -> None:
    together, arguments = pickle.loads(connection.recv_bytes())
    if together:
        seconds = min(seconds, _HASTY_SECONDS)
    answers: list[tuple[bool, Any]] = []
    sent = time.monotonic()
    for argument in arguments:
        # Nothing handles these signals, and so they end the process, wherever it hangs.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds * _PATIENCE)
        try:
            answers.append((True, function(argument)))
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            answers.append((False, " ".join(f"{type(error).__name__}: {error}".split())[:400]))
        # Every message wakes the parent, which costs more than many a call does.
        if not together or time.monotonic() - sent > _GATHERED_SECONDS:
            connection.send_bytes(pickle.dumps(answers, protocol=5))
            answers = []
            sent = time.monotonic()
    if answers:
        connection.send_bytes(pickle.dumps(answers, protocol=5))
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory(megabytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # others take the limit and do not keep to it
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + megabytes * (1 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
