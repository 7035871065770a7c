"""SIGTERM and Ctrl-C as requests to stop after the current step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether somebody asked to stop; `signal_name` is "SIGINT", "SIGTERM" or None."""

    signal_name: str | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT instead of dying of them; the handlers that were there return on leaving.

    A second SIGINT raises KeyboardInterrupt at once. Outside the main thread, where Python allows no handlers, nothing
    is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and request.signal_name is not None:
            raise KeyboardInterrupt
        request.signal_name = signal.Signals(number).name
        # Not through sys.stderr: the signal may have come in the middle of one of its writes.
        os.write(2, f"{request.signal_name}: stopping after this step, with a checkpoint\n".encode())

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
