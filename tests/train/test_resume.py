"""Interrupted and uninterrupted trainings are compared at tolerance zero."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_run import run_toy

from llmkit.errors import Interrupted
from llmkit.store.files import sha256_tree
from llmkit.train.metrics import OF_THE_MACHINE

SCRIPT = Path(__file__).with_name("toy_run.py")
ROOT = Path(__file__).parents[2]


def start(directory: Path, *settings: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(directory), *settings],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )


def steps_of(directory: Path, split: str) -> list[int]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["split"] == split]


def lines_without_times(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in OF_THE_MACHINE} for line in lines]


def wait_for_step(process: subprocess.Popen[bytes], directory: Path, step: int) -> None:
    """Return when the training has done `step` steps, or is over."""
    while process.poll() is None:
        metrics = directory / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count('"train"') >= step:
            return
        time.sleep(0.001)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path, precision: str) -> None:
    settings = {"precision": precision, "optimizer": {"name": "muon"}, "log_every": 1, "steps": 70}
    run_toy(tmp_path / "whole", **settings, checkpoints={"every": 7})
    arguments = [f"precision={precision}", "optimizer={name: muon}", "log_every=1", "steps=70"]
    # A checkpoint at every step, so that many of the moments fall into the writing of one.
    arguments.append("checkpoints={every: 1}")
    moments = random.Random(precision)
    killed = 0
    directory = tmp_path / "killed"
    for target in (9, 25):
        process = start(directory, *arguments)
        wait_for_step(process, directory, target)
        time.sleep(moments.uniform(0, 0.02))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed == 2
    run_toy(directory, **settings, checkpoints={"every": 1})
    assert sha256_tree(directory / "model") == sha256_tree(tmp_path / "whole" / "model")
    assert lines_without_times(directory) == lines_without_times(tmp_path / "whole")
    assert steps_of(directory, "train") == list(range(1, 71))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")])
def test_a_signal_saves_a_checkpoint_and_the_rest_is_the_same(
    tmp_path: Path, number: signal.Signals, code: str
) -> None:
    settings: dict[str, Any] = {"log_every": 1, "steps": 30, "checkpoints": {"every": 1000}, "precision": "fp32"}
    run_toy(tmp_path / "whole", **settings)
    directory = tmp_path / "stopped"
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped:
        _run_and_signal(directory, number, settings)
    assert stopped.value.signal_name == code
    assert stopped.value.exit_code == {"SIGTERM": 143, "SIGINT": 130}[code]
    assert signal.getsignal(number) is before
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["step-00000012"]
    run_toy(directory, **settings)
    assert sha256_tree(directory / "model") == sha256_tree(tmp_path / "whole" / "model")
    assert lines_without_times(directory) == lines_without_times(tmp_path / "whole")


def _run_and_signal(directory: Path, number: signal.Signals, settings: dict[str, Any]) -> None:
    import toy_run

    class Signalling(toy_run.ToySource):
        def batches(self, step: int) -> Any:
            if step == 11:
                os.kill(os.getpid(), number)
            return super().batches(step)

    original = toy_run.ToySource
    toy_run.ToySource = Signalling  # type: ignore[misc]
    try:
        run_toy(directory, **settings)
    finally:
        toy_run.ToySource = original  # type: ignore[misc]


def test_a_signal_while_the_finished_model_is_written_is_not_lost(tmp_path: Path) -> None:
    import toy_run

    original = toy_run.save_toy

    def signalling(model: Any, path: Path) -> None:
        if path.parent == tmp_path:
            os.kill(os.getpid(), signal.SIGTERM)
        original(model, path)

    toy_run.save_toy = signalling
    try:
        with pytest.raises(Interrupted, match="after step 4 of 4"):
            run_toy(tmp_path, steps=4)
    finally:
        toy_run.save_toy = original
    digest = sha256_tree(tmp_path / "model")
    run_toy(tmp_path, steps=4)
    assert sha256_tree(tmp_path / "model") == digest


def test_a_signal_right_before_a_checkpoint_is_decided_on_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.train.checkpoints.config import CheckpointsConfig

    def due(settings: CheckpointsConfig, step: int, seconds: float) -> bool:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    monkeypatch.setattr(CheckpointsConfig, "is_due", due)
    with pytest.raises(Interrupted, match="after step 4 of 9"):
        run_toy(tmp_path, steps=9)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_evaluation_and_checkpoints_do_not_change_what_is_learnt(tmp_path: Path) -> None:
    digests = set()
    for name, settings in (
        ("a", {"evaluate_every": 1, "checkpoints": {"every": 1}}),
        ("b", {"evaluate_every": 20, "checkpoints": {}, "log_every": 3}),
    ):
        run_toy(tmp_path / name, steps=20, **settings)
        digests.add(sha256_tree(tmp_path / name / "model"))
    assert len(digests) == 1


def test_the_seed_decides_and_what_was_drawn_before_does_not(tmp_path: Path) -> None:
    run_toy(tmp_path / "a", steps=6, precision="fp32")
    torch.randn(17)
    run_toy(tmp_path / "b", steps=6, precision="fp32")
    assert sha256_tree(tmp_path / "a" / "model") == sha256_tree(tmp_path / "b" / "model")


def test_a_finished_training_that_is_started_again_only_writes_its_model(tmp_path: Path) -> None:
    first = run_toy(tmp_path, steps=6)
    digest = sha256_tree(tmp_path / "model")
    again = run_toy(tmp_path, steps=6)
    assert sha256_tree(tmp_path / "model") == digest
    assert again.summary == first.summary


def test_what_a_checkpoint_says_stays_while_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written in the background: all of it must be of the step that it is named after."""
    from llmkit.train.checkpoints.checkpoint import Checkpoints, Contents

    taken: list[tuple[Contents, str]] = []

    def take(checkpoints: Checkpoints, step: int, contents: Contents, *, wait: bool = True) -> None:
        taken.append((contents, json.dumps(contents.state)))

    monkeypatch.setattr(Checkpoints, "save", take)
    run_toy(tmp_path, steps=12, checkpoints={"every": 3}, log_every=2, evaluate_every=2, spikes={"threshold": 6})
    assert len(taken) == 4
    assert [json.dumps(contents.state) for contents, _ in taken] == [text for _, text in taken]
    assert len({text for _, text in taken}) == 4
