"""Bad steps: which are found, and that training with them is a function of settings and data still."""

from __future__ import annotations

import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
import toy_run
from toy_run import run_toy

from llmkit.errors import LLMKitError
from llmkit.store.files import remove_tree, sha256_tree
from llmkit.train.config import SpikesConfig
from llmkit.train.guard import FILE, Guard, Passage
from llmkit.train.loop import DivergedError
from llmkit.train.metrics import OF_THE_MACHINE


def guard(directory: Path, **settings: Any) -> Guard:
    return Guard(SpikesConfig.model_validate(settings), directory)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_bad_from_the_first_step_on(tmp_path: Path, value: float) -> None:
    judge = guard(tmp_path, skips=2)
    actions = [judge.judge(step, loss, norm).action for step, (loss, norm) in enumerate([(value, 1), (1, value)])]
    assert actions == ["skip", "skip"]
    assert judge.judge(2, value, value).action == "stop"


def test_a_good_step_ends_a_row_but_not_the_count_of_a_hundred(tmp_path: Path) -> None:
    judge = guard(tmp_path, skips=1, skips_per_hundred=3)
    losses = [math.nan, 1.0] * 3 + [1.0] * 94 + [math.nan, 1.0, math.nan, 1.0, math.nan, 1.0, math.nan]
    actions = [judge.judge(step, loss, 1.0).action for step, loss in enumerate(losses)]
    # Bad are the steps 0, 2, 4 and 100, 102, 104, 106: at 102 those from 3 on count, at 106 those from 7 on.
    assert actions[:6] == ["skip", "update"] * 3
    assert set(actions[6:100]) == {"update"}
    assert actions[100:] == ["skip", "update"] * 3 + ["stop"]


def test_a_spike_is_what_lies_so_many_deviations_above_the_median(tmp_path: Path) -> None:
    draw = random.Random(3)
    norms = [draw.gauss(2.0, 0.1) for _ in range(70)]
    median = statistics.median(norms)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in norms)
    for above, action in ((5.9, "update"), (6.1, "skip"), (-50, "update")):
        judge = guard(tmp_path, threshold=6)
        assert {judge.judge(step, 3.0, norm).action for step, norm in enumerate(norms)} == {"update"}
        verdict = judge.judge(70, 3.0, median + above * deviation)
        assert verdict.action == action
        assert action == "update" or ("gradient norm" in verdict.reason and " 6.1 deviations" in verdict.reason)
    # The deviation that the median absolute one stands for is that of the distribution.
    assert deviation == pytest.approx(0.1, rel=0.25)


def test_nothing_is_a_spike_before_enough_has_been_seen_or_without_a_threshold(tmp_path: Path) -> None:
    judge = guard(tmp_path, threshold=3, history=5)
    assert [judge.judge(step, loss, 1.0).action for step, loss in enumerate([1, 1, 1, 1, 99, 1, 99])] == [
        *["update"] * 6,
        "skip",
    ]
    off = guard(tmp_path)
    assert {off.judge(step, 10.0**step, 10.0**step).action for step in range(200)} == {"update"}


def test_one_spike_does_not_hide_the_next_and_a_new_level_is_learned(tmp_path: Path) -> None:
    judge = guard(tmp_path, threshold=6, skips=100, skips_per_hundred=100)
    assert {judge.judge(step, 1.0 + step % 3 / 10, 1.0).action for step in range(100)} == {"update"}
    assert [judge.judge(100 + step, 1e30, 1.0).action for step in range(3)] == ["skip"] * 3
    actions = [judge.judge(103 + step, 5.0 + step % 3 / 10, 1.0).action for step in range(100)]
    assert actions[:40] == ["skip"] * 40
    assert actions[60:] == ["update"] * 40


def test_a_rewind_passes_over_the_bad_steps_and_those_before_them(tmp_path: Path) -> None:
    judge = guard(tmp_path, skips=2, rewinds=1, lookback=4)
    for step in range(10):
        judge.judge(step, 1.0, 1.0)
    verdicts = [judge.judge(step, math.nan, 1.0) for step in (10, 11, 12)]
    assert [verdict.action for verdict in verdicts] == ["skip", "skip", "rewind"]
    assert verdicts[-1].first == 6
    judge.record(Passage(6, 12, "x"))
    again = guard(tmp_path, skips=2, rewinds=1, lookback=4)
    assert [step for step in range(20) if again.passes_over(step)] == [6, 7, 8, 9, 10, 11, 12]
    assert [again.passed_over(done) for done in (0, 6, 7, 13, 20)] == [0, 0, 1, 7, 7]
    # Of the checkpoints of the attempt given up only those from before its first step passed over count.
    assert [again.belongs(step, {"rewinds": 0}) for step in (0, 6, 7, 13)] == [True, True, False, False]
    assert again.belongs(13, {"rewinds": 1})
    assert [again.judge(step, math.nan, 1.0).action for step in (13, 14, 15)] == ["skip", "skip", "stop"]


class PoisonedSource(toy_run.ToySource):
    """Some steps are marked as bad, on which `PoisonedObjective` answers with a loss of NaN; at one it is killed."""

    bad: frozenset[int] = frozenset()
    stop_at: int | None = None

    def batches(self, step: int) -> Any:
        if step == self.stop_at:
            raise KeyboardInterrupt
        return [(rows, step in self.bad) for rows in super().batches(step)]


class PoisonedObjective(toy_run.ToyObjective):
    def loss(self, model: Any, batch: Any) -> Any:
        rows, bad = batch if isinstance(batch, tuple) else (batch, False)
        output = super().loss(model, rows)
        return output._replace(sum=output.sum * math.nan) if bad else output


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> type[PoisonedSource]:
    monkeypatch.setattr(toy_run, "ToySource", PoisonedSource)
    monkeypatch.setattr(toy_run, "ToyObjective", PoisonedObjective)
    monkeypatch.setattr(PoisonedSource, "bad", frozenset())
    monkeypatch.setattr(PoisonedSource, "stop_at", None)
    return PoisonedSource


def lines(directory: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in OF_THE_MACHINE} for line in read]


SETTINGS: dict[str, Any] = {"steps": 24, "precision": "fp32", "log_every": 1}
REWINDS = {"skips": 1, "rewinds": 2, "lookback": 2}


def test_a_bad_step_is_left_out_and_said(
    tmp_path: Path, poisoned: type[PoisonedSource], capsys: pytest.CaptureFixture[str]
) -> None:
    poisoned.bad = frozenset({11, 12})
    result = run_toy(tmp_path, **SETTINGS)
    assert result.summary["skipped_steps"] == 2
    assert "rewinds" not in result.summary
    train = [line for line in lines(tmp_path) if line["split"] == "train"]
    assert [line["step"] for line in train if "loss" not in line] == [12, 13]
    assert [line.get("skipped_steps", 0) for line in train] == [0] * 11 + [1] + [2] * 12
    said = capsys.readouterr().err
    assert "step 12: loss nan is not finite; its update is left out" in said
    assert math.isfinite(result.summary["validation_loss"])


def test_bad_steps_that_do_not_end_stop_with_what_was_tried(tmp_path: Path, poisoned: type[PoisonedSource]) -> None:
    poisoned.bad = frozenset(range(7, 99))
    with pytest.raises(DivergedError, match=r"step 11 is not finite.*; 3 bad steps before it were left out\."):
        run_toy(tmp_path, checkpoints={"every": 5, "keep_last": 1}, **SETTINGS)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


@pytest.mark.parametrize("checkpoint_every", [1, 4, 100])
def test_where_training_goes_back_to_does_not_matter(
    tmp_path: Path, poisoned: type[PoisonedSource], checkpoint_every: int
) -> None:
    """The same as where the steps passed over were known from the start, whichever checkpoints there are."""
    (tmp_path / "told").mkdir()
    told = [Passage(8, 11, "told"), Passage(17, 20, "told")]
    (tmp_path / "told" / FILE).write_text("".join(json.dumps(vars(passage)) + "\n" for passage in told))
    expected = run_toy(tmp_path / "told", spikes=REWINDS, **SETTINGS, checkpoints={"every": 100, "keep_last": 1})
    poisoned.bad = frozenset({10, 11, 19, 20})
    result = run_toy(
        tmp_path / "found", spikes=REWINDS, **SETTINGS, checkpoints={"every": checkpoint_every, "keep_last": 1}
    )
    assert sha256_tree(tmp_path / "found" / "model") == sha256_tree(tmp_path / "told" / "model")
    assert lines(tmp_path / "found") == lines(tmp_path / "told")
    counts = {key: result.summary[key] for key in ("passed_over_steps", "rewinds")}
    assert counts == {"passed_over_steps": 8, "rewinds": 2}
    assert result.summary["tokens"] == expected.summary["tokens"] == 16 * 64
    assert result.summary["train_loss"] == expected.summary["train_loss"]


def test_killed_anywhere_around_a_rewind_it_ends_with_the_same_bytes(
    tmp_path: Path, poisoned: type[PoisonedSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "steps": 24, "spikes": REWINDS, "checkpoints": {"every": 3, "keep_last": 1}}
    poisoned.bad = frozenset({10, 11, 19, 20})
    whole = run_toy(tmp_path / "whole", **settings)
    killed = tmp_path / "killed"
    for stop_at in (9, 11, 12, 20, 21, 22):
        monkeypatch.setattr(poisoned, "stop_at", stop_at)
        with pytest.raises(KeyboardInterrupt):
            run_toy(killed, **settings)
    assert (killed / FILE).read_text().count("\n") == 2
    monkeypatch.setattr(poisoned, "stop_at", None)
    again = run_toy(killed, **settings)
    assert sha256_tree(killed / "model") == sha256_tree(tmp_path / "whole" / "model")
    assert lines(killed) == lines(tmp_path / "whole")
    for name in ("steps", "tokens", "skipped_steps", "passed_over_steps", "rewinds", "train_loss", "validation_loss"):
        assert again.summary.get(name) == whole.summary.get(name)


def test_killed_right_after_the_note_of_a_rewind_the_given_up_checkpoints_are_not_gone_on_from(
    tmp_path: Path, poisoned: type[PoisonedSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = {"every": 1, "keep_last": 1, "asynchronous": False}
    settings = {**SETTINGS, "steps": 14, "spikes": REWINDS, "checkpoints": checkpoints}
    poisoned.bad = frozenset({10, 11})
    run_toy(tmp_path / "whole", **settings)

    def die(guard: Guard, passage: Passage) -> None:
        original(guard, passage)
        raise KeyboardInterrupt

    original = Guard.record
    monkeypatch.setattr(Guard, "record", die)
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path / "killed", **settings)
    assert (tmp_path / "killed/checkpoints/step-00000011").is_dir()
    monkeypatch.setattr(Guard, "record", original)
    run_toy(tmp_path / "killed", **settings)
    assert sha256_tree(tmp_path / "killed/model") == sha256_tree(tmp_path / "whole/model")
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_without_a_checkpoint_to_go_back_to_it_says_so_and_starts_over(
    tmp_path: Path, poisoned: type[PoisonedSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned.bad = frozenset({10, 11})
    # Written at once: a checkpoint still being written when its folder goes is another failure, with its own words.
    settings = {**SETTINGS, "spikes": REWINDS, "checkpoints": {"every": 5, "asynchronous": False}}
    run_toy(tmp_path / "whole", **settings)
    record = Guard.record

    def lose(guard: Guard, passage: Passage) -> None:
        record(guard, passage)
        remove_tree(tmp_path / "lost/checkpoints")

    monkeypatch.setattr(Guard, "record", lose)
    with pytest.raises(LLMKitError, match=r"none is whole.*starts over"):
        run_toy(tmp_path / "lost", **settings)
    run_toy(tmp_path / "lost", **settings)
    assert sha256_tree(tmp_path / "lost/model") == sha256_tree(tmp_path / "whole/model")


@pytest.mark.parametrize(("spikes", "key"), [({"history": 20}, "spikes.history"), ({"lookback": 3}, "spikes.lookback")])
def test_settings_without_effect_are_found(spikes: dict[str, Any], key: str) -> None:
    config = toy_run.ToyConfig.model_validate({"spikes": spikes})
    assert [finding.key for finding in config.check({})] == [key]
    config = toy_run.ToyConfig.model_validate({"spikes": {**spikes, "threshold": 6, "rewinds": 1}})
    assert not list(config.check({}))
