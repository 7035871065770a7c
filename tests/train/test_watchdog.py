"""A rank that hangs, seen from outside: a process of its own that stops doing anything."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch import nn

from llmkit.train.watchdog import watched

ROOT = Path(__file__).parents[2]
HANGING = """
import sys, threading, time
from pathlib import Path
from torch import nn
from llmkit.train.watchdog import watched

def stands_still():
    time.sleep(30)

directory, rank, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
with watched(nn.Linear(1, 1), directory, seconds, rank) as beat:
    beat("step 7")
    print("ready", flush=True)
    stands_still()
"""


def start(directory: Path, rank: int, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, str(directory), str(rank), str(seconds)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_hang_writes_the_stacks_of_all_ranks_and_ends_them(tmp_path: Path) -> None:
    # Of an earlier hang: kept, and no sign of a new one.
    (tmp_path / "hang-rank1.txt").write_text("before\n")
    other = start(tmp_path, 1, 1000.0)
    first = start(tmp_path, 0, 1.0)
    said = [process.communicate()[1] for process in (first, other)]
    assert [first.returncode, other.returncode] == [1, 1]
    for rank, why in ((0, "nothing has happened for"), (1, "another rank hangs (hang-rank0.txt)")):
        report = (tmp_path / f"hang-rank{rank}.txt").read_text()
        assert why in report
        assert "busy with step 7" in report
        assert "in stands_still" in report
        assert "watchdog.py" in report
        assert report.removeprefix("before\n") in said[rank]
        assert "The same command goes on from the last checkpoint." in said[rank]
    assert (tmp_path / "hang-rank1.txt").read_text().startswith("before\n")


def test_signs_of_life_keep_the_watch_quiet(tmp_path: Path) -> None:
    left: list[int] = []
    model = nn.Linear(1, 1)
    before = threading.active_count()
    with watched(model, tmp_path, 0.4, 0, left.append) as beat:
        for number in range(12):
            time.sleep(0.05)
            beat(f"step {number}")
        for _ in range(12):
            time.sleep(0.05)
            model(nn.Parameter(model.weight))
    assert not left
    assert not list(tmp_path.iterdir())
    assert threading.active_count() == before
    assert not model._forward_pre_hooks


def test_without_a_number_of_seconds_nothing_is_watched(tmp_path: Path) -> None:
    before = threading.active_count()
    with watched(nn.Linear(1, 1), tmp_path, None, 0) as beat:
        beat("anything")
        assert threading.active_count() == before


@pytest.mark.parametrize("reason", [KeyboardInterrupt, ValueError])
def test_the_watch_ends_with_what_it_watches(tmp_path: Path, reason: type[BaseException]) -> None:
    before = threading.active_count()
    with pytest.raises(reason), watched(nn.Linear(1, 1), tmp_path, 100.0, 0):
        raise reason
    assert threading.active_count() == before
