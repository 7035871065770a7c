"""A pool of worker processes on this machine.

The workers are programs of their own that get tasks as lines of JSON and answer by lines of JSON: nothing of this
process is copied into them, and nothing is pickled. They end when this process does, however it ends.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from llmkit.data.execution.cache import Cache
from llmkit.data.execution.tasks import Task
from llmkit.data.execution.worker import ONE_THREAD, raise_error
from llmkit.errors import DataError

_ATTEMPTS = 2


class Queue:
    """Tasks that wait, for workers that remember what they have done.

    Args:
        tasks: in the order in which they are to begin.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._groups: dict[str, deque[Task]] = {}
        for task in tasks:
            self._groups.setdefault(task.near or task.key, deque()).append(task)
        self._untouched = deque(self._groups)

    def take(self, near: str) -> Task | None:
        """A task near to what a worker has done; else of a group that nobody has begun; else of any; None where there
        are none."""
        if near not in self._groups:
            while self._untouched and self._untouched[0] not in self._groups:
                self._untouched.popleft()
            near = self._untouched.popleft() if self._untouched else next(iter(self._groups), "")
        group = self._groups.get(near)
        if group is None:
            return None
        task = group.popleft()
        if not group:
            del self._groups[near]
        return task

    def put_back(self, task: Task) -> None:
        """What has to be done again comes next."""
        self._groups.setdefault(task.near or task.key, deque()).appendleft(task)
        self._untouched.appendleft(task.near or task.key)


@dataclass
class _Worker:
    process: subprocess.Popen[str]
    task: Task | None = None
    near: str = ""

    @property
    def answers(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def send(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()


class LocalPool:
    """Does tasks in processes that are started once and kept.

    Args:
        processes: how many.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._workers: list[_Worker] = []

    def execute(self, tasks: Sequence[Task], cache: Cache) -> Iterator[Task]:
        """Give each worker the next task when it is done with one.

        Raises:
            LLMKitError: what a task's function raises there, or a worker that died twice over one task.
            RuntimeError: any other exception there, with its traceback.
        """
        waiting = Queue(tasks)
        attempts: Counter[str] = Counter()
        while len(self._workers) < min(self._processes, len(tasks)):
            self._workers.append(_Worker(_start()))
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.answers, selectors.EVENT_READ, worker)
                _give(worker, waiting, cache)
            while any(worker.task is not None for worker in self._workers):
                for ready, _ in selector.select():
                    worker = ready.data
                    task = worker.task
                    answer = worker.answers.readline()
                    if answer:
                        raise_error(json.loads(answer))
                        worker.task = None
                        yield task
                    else:
                        selector.unregister(worker.answers)
                        attempts[task.key] += 1
                        if attempts[task.key] == _ATTEMPTS:
                            raise _died(task, worker.process.wait())
                        waiting.put_back(task)
                        _stop(worker)
                        self._workers.remove(worker)
                        worker = _Worker(_start())
                        self._workers.append(worker)
                        selector.register(worker.answers, selectors.EVENT_READ, worker)
                    _give(worker, waiting, cache)

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for worker in self._workers:
            _stop(worker)
        self._workers = []


def _give(worker: _Worker, waiting: Queue, cache: Cache) -> None:
    worker.task = waiting.take(worker.near)
    if worker.task is not None:
        worker.near = worker.task.near or worker.task.key
        # One that is dying is found by its end of output.
        try:
            worker.send({"cache": str(cache.root), "task": worker.task.as_json()})
        except BrokenPipeError:
            return


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "llmkit.data.execution.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        # Modules that the settings name ("module:function") may be found by this process's path alone.
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def _stop(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.wait()
    for stream in (worker.process.stdin, worker.process.stdout):
        if stream is not None:
            try:
                stream.close()
            except BrokenPipeError:
                continue


def _died(task: Task, code: int) -> DataError:
    how = f"by the signal {signal.Signals(-code).name}" if code < 0 else f"with the exit code {code}"
    return DataError(
        f"a process that did the task `{task.name}` ended {how}, twice ({task.label}).",
        hint="Where memory was too small, ask for fewer processes: `executor.processes`.",
    )
