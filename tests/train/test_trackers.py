from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toy_run import ToyConfig, run_toy

from llmkit.train import config as train_config
from llmkit.train.metrics import MetricsLog, Window


def test_averages_are_sums_over_weights() -> None:
    window = Window()
    window.add("loss", 6.0, 2.0)
    window.add("loss", 3.0, 1.0)
    window.add("unseen", 0.0, 0.0)
    assert window.averages() == {"loss": 3.0}
    assert Window(window.totals()).averages() == {"loss": 3.0}


def test_lines_after_the_checkpoint_and_torn_ones_are_removed(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, [])
    for step in (1, 2, 3):
        log.write(step, "train", {"loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "spl')
    MetricsLog(tmp_path, 2, []).close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "split": "train", "loss": 1.0}\n{"step": 2, "split": "train", "loss": 2.0}\n'
    MetricsLog(tmp_path, 0, []).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


class Recorder:
    def __init__(self) -> None:
        self.lines: list[tuple[int, str, dict[str, float]]] = []
        self.closed = False

    def write(self, step: int, split: str, values: Any) -> None:
        self.lines.append((step, split, dict(values)))

    def close(self) -> None:
        self.closed = True


def test_trackers_get_every_line(tmp_path: Path) -> None:
    recorder = Recorder()
    log = MetricsLog(tmp_path, 0, [recorder])
    log.write(5, "validation", {"loss": 2.0})
    log.close()
    assert recorder.lines == [(5, "validation", {"loss": 2.0})]
    assert recorder.closed


def test_missing_packages_are_found_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ToyConfig.model_validate({"wandb": {"project": "p"}, "tensorboard": True})
    assert list(config.check({})) == []
    monkeypatch.setattr(train_config, "find_spec", lambda name: None)
    assert [finding.key for finding in config.check({})] == ["wandb", "tensorboard"]


def test_trackers_are_not_imported_unless_asked_for() -> None:
    code = "import sys, llmkit.train.loop; print([m for m in ('wandb', 'tensorboard') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tensorboard_files_hold_the_lines(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run_toy(tmp_path, steps=4, log_every=2, tensorboard=True, precision="fp32")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4]
    assert events.Scalars("validation/loss")[-1].value == pytest.approx(result.summary["validation_loss"])


def test_wandb_runs_offline(tmp_path: Path) -> None:
    run_toy(tmp_path, steps=2, wandb={"project": "toy", "mode": "offline"}, precision="fp32")
    identity = (tmp_path / "wandb-run-id").read_text()
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb"))) == 1
