"""A small form of what `scripts/kill_training.py` does 60 times; in a process of its own, which forks others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from chain_support import ROOT, load_script

script = load_script("kill_training")


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path, ranks: int) -> None:
    found = subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "kill_training.py")),
            *("--kills", "3", "--ranks", str(ranks), "--signal", "KILL", "TERM"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    for name in ("SIGKILL", "SIGTERM"):
        assert f"3 times {name}" in found.stderr
    digests = [line.split("digest ")[1].split(", ") for line in found.stderr.splitlines() if "digest " in line]
    assert len(digests) == 2
    for killed, alone, files in digests:
        assert f"left alone {killed}" == alone
        assert files == "5 files"


def test_moments_follow_from_the_seed_one_in_each_part_of_the_way() -> None:
    chosen = list(script.moments(60, 2, 3))
    assert chosen == list(script.moments(60, 2, 3)) != list(script.moments(60, 2, 4))
    every = script.STEPS_BETWEEN_KILLS
    assert [moment.step // every for moment in chosen] == list(range(60))
    assert {moment.when for moment in chosen} == {"starting", "training", "checkpoint"}
    assert {moment.one for moment in chosen} == {None, 0, 1}
    assert {moment.one for moment in script.moments(60, 1, 3)} == {None}


def test_lines_that_differ_are_found_whatever_the_machine(tmp_path: Path) -> None:
    for name, text in (("a", '"loss": 1, "seconds": 2'), ("b", '"loss": 1, "seconds": 3'), ("c", '"loss": 2')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, ' + text + "}\n")
    read = [script.lines(tmp_path / name) for name in "abc"]
    assert read[0] == read[1] != read[2]
