"""SIGTERM and Ctrl-C as requests to stop after the current step; a second Ctrl-C ends the process at once.

Python runs a signal's handler between two of its own instructions, so one that waits inside a collective or a write
runs none. A thread of its own therefore hears of every signal through the wake-up descriptor, which the operating
system's handler writes to at once: it says that the request has come, and it is who leaves at the second SIGINT.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from llmkit.errors import EXIT_INTERRUPTED

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 1.0
"""Within so many seconds torchrun passes a signal on that all processes have had already."""
_SHOW_CURSOR = b"\x1b[?25h"


class StopRequest:
    """Whether somebody asked this process to stop; `signal_name` is "SIGINT", "SIGTERM" or None."""

    signal_name: str | None = None

    def votes(self) -> list[float]:
        """One number for each of `SIGNALS`, to be added up over the ranks."""
        return [float(self.signal_name == number.name) for number in SIGNALS]


def elected(votes: Sequence[float]) -> str | None:
    """The signal that any rank has had, from the sums of their `StopRequest.votes`; SIGTERM goes before SIGINT."""
    return next((number.name for number, count in zip(SIGNALS, votes, strict=True) if count), None)


@contextmanager
def stop_requests(echo_seconds: float = 0.0, *, speaks: bool = True) -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT instead of dying of them; the handlers that were there return on leaving.

    A SIGINT after another signal ends the process at once with exit code 130, whatever it is waiting for. Outside the
    main thread, where Python allows no handlers, nothing is noted.

    Args:
        echo_seconds: a SIGINT that comes so soon after the first signal is the same one again: a terminal sends it to
            all processes, and torchrun passes its own on to the ranks.
        speaks: whether to answer with a line; one rank says it for all.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal_name is None:
            request.signal_name = signal.Signals(number).name

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, note) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(reader, echo_seconds, speaks), name="signals", daemon=True)
    listener.start()
    try:
        yield request
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
        listener.join()
        os.close(reader)


def _listen(reader: int, echo_seconds: float, speaks: bool) -> None:
    """Answer the first signal with a line and a later SIGINT with the end, until the pipe is closed."""
    first: float | None = None
    while received := os.read(reader, 64):
        for number in received:
            if number not in SIGNALS:
                continue
            now = time.monotonic()
            if first is None:
                first = now
                if speaks:
                    _tell(f"{signal.Signals(number).name}: stopping after this step, with a checkpoint\n".encode())
            elif number == signal.SIGINT and now - first >= echo_seconds:
                _leave(speaks)


def _leave(speaks: bool) -> None:
    """End the process; no handler, lock or thread is waited for. What was being written is left as by a kill."""
    if speaks:
        _tell(b"SIGINT: leaving at once; the same command goes on from the last checkpoint\n")
    if sys.__stderr__ is not None and sys.__stderr__.isatty():
        # The progress bar has hidden it.
        _tell(_SHOW_CURSOR)
    os._exit(EXIT_INTERRUPTED)


def _tell(line: bytes) -> None:
    # Not through sys.stderr: the signal may have come in the middle of one of its writes, which hold a lock.
    os.write(2, line)
