from __future__ import annotations

import subprocess
import sys
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from llmkit.train.config import TrainConfig
from llmkit.train.optimizers.config import OptimizerConfig


class Stage(TrainConfig):
    stage: Literal["stage"] = "stage"
    optimizer: OptimizerConfig = OptimizerConfig(lr=2e-5)


def problems(**values: Any) -> list[str]:
    return [finding.key for finding in Stage.model_validate(values).check({})]


def test_defaults_have_nothing_wrong() -> None:
    assert problems() == []


def test_a_partial_mapping_keeps_the_default_of_the_stage() -> None:
    config = Stage.model_validate({"optimizer": {"weight_decay": 0.0}})
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (2e-5, 0.0)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"batch_size": 6, "micro_batch_size": 4}, "micro_batch_size"),
        ({"batch_size": 2, "micro_batch_size": 4}, "micro_batch_size"),
        ({"steps": 10, "schedule": {"warmup_steps": 11}}, "schedule.warmup_steps"),
        ({"steps": 10, "schedule": {"name": "wsd", "warmup_steps": 9}}, "schedule.decay_fraction"),
        ({"schedule": {"decay_fraction": 0.5}}, "schedule.decay_fraction"),
        ({"schedule": {"name": "constant", "final_fraction": 0.5}}, "schedule.final_fraction"),
        ({"optimizer": {"momentum": 0.9}}, "optimizer.momentum"),
    ],
)
def test_what_does_not_go_together_is_named(values: dict[str, Any], key: str) -> None:
    assert problems(**values) == [key]


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"steps": 1.5},
        {"steps": "10"},
        {"optimizer": {"lr": 0.0}},
        {"optimizer": {"betas": [0.9]}},
        {"optimizer": {"betas": [0.9, 1.0]}},
        {"optimizer": {"name": "sgd"}},
        {"optimizer": 3},
        {"precision": "fp16"},
        {"wandb": {"mode": "online"}},
        {"clip_norm": 0},
        {"learning_rate": 1e-3},
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Stage.model_validate(values)


def test_warmup_is_a_twentieth_of_the_steps_up_to_500() -> None:
    assert [Stage(steps=steps).warmup_steps for steps in (10, 400, 100_000)] == [0, 20, 500]


def test_settings_are_read_without_heavy_imports() -> None:
    code = "import sys, llmkit.train.config; print([m for m in ('torch', 'numpy', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
