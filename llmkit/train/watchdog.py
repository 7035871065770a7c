"""A hang is noticed: no sign of life for so many seconds, then the stacks of all threads of all ranks, and the end.

Signs of life are steps, forward passes, evaluations and checkpoints. Each rank has a watch of its own. The first one
that runs out writes `hang-rank<n>.txt` into the stage's directory; the others see the file there and write theirs, so
that the stacks show who waits for whom. Then all end with exit code 1, and whatever started the run may start it again.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from torch import nn

from llmkit.console import format_seconds
from llmkit.errors import EXIT_FAULT

_LONGEST_POLL_SECONDS = 2.0
_STDERR = 2


class Watchdog:
    """Watches one rank; made by `watched`.

    Args:
        directory: the stage's, the same for all ranks.
        seconds: without a sign of life, after which the run is taken to hang.
        rank: number of this rank.
        leave: what ends the process.
    """

    def __init__(self, directory: Path, seconds: float, rank: int, leave: Callable[[int], object]) -> None:
        self._directory, self._seconds, self._rank, self._leave = directory, seconds, rank, leave
        self._poll = min(_LONGEST_POLL_SECONDS, seconds / 4)
        self._known = self._reports()
        self._doing = "starting"
        self._last = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def start(self) -> None:
        """Watch from now on."""
        self._thread.start()

    def beat(self, doing: str | None = None) -> None:
        """A sign of life.

        Args:
            doing: what is done from here on, for the message ("step 12"); by default the same as before.
        """
        if doing is not None:
            self._doing = doing
        self._last = time.monotonic()

    def stop(self) -> None:
        """Watch no longer."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        """Look at the clock and at the other ranks' files until it is over."""
        try:
            while not self._over.wait(self._poll):
                # A hang in native code that keeps Python's lock stops this thread as well: then a timer outside of
                # Python, which is wound up again each time round, writes the stacks and ends the process.
                faulthandler.dump_traceback_later(self._seconds + 10 * self._poll, file=_STDERR, exit=True)
                silent = time.monotonic() - self._last
                others = sorted(name for name, size in self._reports().items() if size > self._known.get(name, 0))
                if silent >= self._seconds:
                    self._end(f"nothing has happened for {format_seconds(silent)}")
                    return
                if others:
                    self._end(f"another rank hangs ({others[0]})")
                    return
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _reports(self) -> dict[str, int]:
        """Sizes of all ranks' files by name; those of earlier hangs stay."""
        found = {}
        for path in self._directory.glob("hang-rank*.txt"):
            try:
                found[path.name] = path.stat().st_size
            except OSError:
                continue
        return found

    def _end(self, why: str) -> None:
        """Write the stacks, give the other ranks time to see it and write theirs, and leave."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = f"rank {self._rank}, {now}: {why}, busy with {self._doing}. The stacks of its threads:\n"
        place = self._directory / f"hang-rank{self._rank}.txt"
        with place.open("a", encoding="utf-8") as report:
            for descriptor in (report.fileno(), _STDERR):
                os.write(descriptor, line.encode())
                faulthandler.dump_traceback(file=descriptor, all_threads=True)
        os.write(_STDERR, f"error: rank {self._rank} hangs and is ended; see {place}. {_HINT}\n".encode())
        self._over.wait(3 * self._poll)
        self._leave(EXIT_FAULT)


_HINT = (
    "The same command goes on from the last checkpoint. Where a step, an evaluation or a checkpoint may take so long, "
    "set `watchdog` higher."
)


@contextmanager
def watched(
    model: nn.Module, directory: Path, seconds: float | None, rank: int, leave: Callable[[int], object] = os._exit
) -> Iterator[Callable[[str], None]]:
    """Watch over what is done inside; every forward pass of the model is a sign of life.

    Args:
        model: what is trained.
        directory: the stage's, the same for all ranks.
        seconds: without a sign of life, after which the run is taken to hang; None for no watch.
        rank: number of this rank.
        leave: what ends the process.

    Yields:
        to be called with each sign of life, and what is done from there on.
    """
    if seconds is None:
        yield lambda doing: None
        return
    watchdog = Watchdog(directory, seconds, rank, leave)

    def passes(module: nn.Module, inputs: object) -> None:
        watchdog.beat()

    hook = model.register_forward_pre_hook(passes)
    watchdog.start()
    try:
        yield watchdog.beat
    finally:
        watchdog.stop()
        hook.remove()
