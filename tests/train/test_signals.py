"""Signals to a process of its own, as a second Ctrl-C ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmkit.train.signals import StopRequest, elected, stop_requests

ROOT = Path(__file__).parents[2]
WAITING = """
import os, sys, time
from llmkit.train.signals import stop_requests
from pathlib import Path
kind, echo = sys.argv[1], float(sys.argv[2])
with stop_requests(echo) as stop:
    print("ready", flush=True)
    if kind == "read":
        # No instruction of Python's is run while this waits, as inside a collective or a write.
        while True:
            data = os.read(0, 1)
            if not data:
                break
    else:
        time.sleep(20)
print(stop.signal_name, flush=True)
"""


def start(kind: str, echo: float = 0.0) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, kind, str(echo)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


@pytest.mark.parametrize("kind", ["read", "sleep"])
def test_a_second_interrupt_ends_the_process_at_once_whatever_it_waits_for(kind: str) -> None:
    process = start(kind)
    process.send_signal(signal.SIGINT)
    assert line_of(process) == "SIGINT: stopping after this step, with a checkpoint\n"
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert time.monotonic() - began < 5
    assert "leaving at once" in process.communicate()[1]


def test_the_same_interrupt_come_twice_is_one(tmp_path: Path) -> None:
    process = start("read", echo=2.0)
    process.send_signal(signal.SIGINT)
    assert line_of(process).startswith("SIGINT: stopping")
    process.send_signal(signal.SIGINT)
    time.sleep(2.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130


def test_a_second_sigterm_is_no_second_interrupt() -> None:
    process = start("read")
    process.send_signal(signal.SIGTERM)
    assert line_of(process).startswith("SIGTERM: stopping")
    process.send_signal(signal.SIGTERM)
    assert process.stdin is not None
    process.stdin.close()
    assert process.stdout is not None
    assert process.stdout.read() == "SIGTERM\n"
    assert process.wait() == 0


def test_handlers_and_the_wakeup_descriptor_come_back() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_requests() as stop:
        assert stop.signal_name is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_name == "SIGTERM"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    assert wakeup == -1


def test_all_ranks_take_the_signal_that_any_of_them_has_had() -> None:
    asked = {name: StopRequest() for name in ("SIGINT", "SIGTERM", "none")}
    asked["SIGINT"].signal_name, asked["SIGTERM"].signal_name = "SIGINT", "SIGTERM"

    def together(*names: str) -> str | None:
        return elected([sum(values) for values in zip(*(asked[name].votes() for name in names), strict=True)])

    assert together("none", "none") is None
    assert together("none", "SIGINT") == "SIGINT"
    assert together("SIGTERM", "none", "none") == "SIGTERM"
    assert together("SIGINT", "SIGTERM") == "SIGTERM"
