"""Kills that hit, kills that come too late, and files that differ, with a program in place of `llmkit run`.

`tests/pipeline/test_chain.py` has the script kill the real one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from chain_support import ROOT, load_script

from llmkit.errors import ArtifactError, LLMKitError
from llmkit.store.artifact import is_artifact, open_artifact

FAKE = Path(__file__).with_name("fake_llmkit.py")
MEASUREMENTS = 10

script = load_script("kill_and_resume")


def command(seconds: float, result: str = "result") -> Any:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return script.Command(Path("f.yaml"), (), environment, (sys.executable, str(FAKE), str(seconds), result))


def target(part: float, seconds: float) -> Any:
    return script.Target("work", "eval", part, seconds, measurements=MEASUREMENTS)


def started(place: Path) -> int:
    return len((place / "starts").read_text().splitlines())


@pytest.mark.parametrize("part", [0.2, 0.75])
def test_a_stage_is_killed_where_it_should_be_and_goes_on(tmp_path: Path, part: float) -> None:
    log, overrides = tmp_path / "log", [f"runs_dir={tmp_path}"]
    moment = script.kill_in(target(part, 1.0), command(1.0), tmp_path, log, overrides)
    unfinished = tmp_path / "work.partial-0"
    done = len(list((unfinished / "measurements").iterdir()))
    assert int(part * MEASUREMENTS) <= done
    assert moment == f"result {done} of {MEASUREMENTS}"
    assert not is_artifact(tmp_path / "work")
    command(0.0).finish(log, *overrides)
    assert started(tmp_path / "work") == 2
    open_artifact(tmp_path / "work", verify=True)


def test_a_stage_that_ended_before_the_kill_is_made_again_and_killed_earlier(tmp_path: Path) -> None:
    # It is said to take six times as long as it does, so that the first kills come too late.
    late = script.Target("work", "data", 0.9, 3.0)
    moment = script.kill_in(late, command(0.5), tmp_path, tmp_path / "log", [f"runs_dir={tmp_path}"])
    assert moment.endswith(" of 3.0s")
    assert float(moment.partition("s")[0]) < 0.9 * 3.0 / 2
    assert not (tmp_path / "work").exists()
    assert started(tmp_path / "work.partial-0") == 1


def test_a_command_that_fails_is_no_kill(tmp_path: Path) -> None:
    failing = script.Command(Path("f.yaml"), (), None, (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(LLMKitError, match="exit code 3"):
        script.kill_in(target(0.5, 1.0), failing, tmp_path, tmp_path / "log", [])
    with pytest.raises(LLMKitError, match="exit code 3"):
        failing.finish(tmp_path / "log")


def test_files_that_differ_are_named_and_damaged_ones_refused(tmp_path: Path) -> None:
    places = []
    for name, result in (("a", "result"), ("b", "result"), ("c", "resulT")):
        command(0.0, result).finish(tmp_path / "log", f"runs_dir={tmp_path / name}")
        places.append(tmp_path / name / "work")
    assert script.different_files(places[0], places[1]) == (1, [])
    assert script.different_files(places[0], places[2]) == (1, ["results.json"])
    (places[1] / "results.json").write_text("resulT")
    with pytest.raises(ArtifactError, match=r"`results.json` has other bytes"):
        script.different_files(places[0], places[1])
