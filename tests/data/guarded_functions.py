"""What the tests of guarded workers run in them."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

_seen: list[Any] = []


def double(value: int) -> int:
    return 2 * value


def misbehave(what: Any) -> Any:
    """One way of going wrong for each name; anything else is given back with the number of this process."""
    if what == "raise":
        raise KeyError("not there")
    if what == "loop":
        while True:
            pass
    if what == "sleep":
        time.sleep(1000)
    if what == "memory":
        return bytes(10**10)
    if what == "crash":
        ctypes.string_at(0)
    if what == "abort":
        os.abort()
    if what == "exit":
        os._exit(3)
    if what == "object":
        return KeyError
    if what == "hoard":
        # 40 MB that stay: a process with 100 MB has no room for a third.
        _seen.append(bytearray(40_000_000))
    return what, os.getpid()


def work(seconds: float) -> str:
    """Compute for some time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return f"worked {seconds} s"
