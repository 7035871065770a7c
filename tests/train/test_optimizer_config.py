from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import ValidationError

from llmkit.train.config import TrainConfig


class Stage(TrainConfig):
    stage: Literal["stage"] = "stage"


def problems(**values: Any) -> list[str]:
    return [finding.key for finding in Stage.model_validate(values).check({})]


CONSTANT = {"name": "constant"}


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"optimizer": {"name": "schedule-free"}}, ["schedule.name"]),
        ({"optimizer": {"name": "schedule-free"}, "schedule": CONSTANT}, []),
        ({"optimizer": {"name": "schedule-free"}, "schedule": CONSTANT, "average": {}}, ["average"]),
        ({"optimizer": {"name": "schedule-free", "betas": [0.0, 0.9]}, "schedule": CONSTANT}, ["optimizer.betas"]),
        ({"optimizer": {"groups": [{"match": "*", "name": "schedule-free"}]}}, ["schedule.name"]),
        ({"optimizer": {"name": "adafactor", "eps": 1e-7, "betas": [0.8, 0.9]}}, ["optimizer.betas", "optimizer.eps"]),
        ({"optimizer": {"name": "lion", "eps": 1e-7}}, ["optimizer.eps"]),
        ({"optimizer": {"momentum": 0.9}}, ["optimizer.momentum"]),
        ({"optimizer": {"momentum": 0.9, "groups": [{"match": "*.weight", "name": "muon"}]}}, []),
        ({"optimizer": {"rounding": "kahan"}}, ["optimizer.rounding"]),
        ({"optimizer": {"rounding": "kahan"}, "precision": "bf16-pure"}, []),
        ({"average": {"decay": 0.99}, "optimizer": {"state": "bf16", "offload": True}}, []),
    ],
)
def test_what_does_not_go_together_is_named(values: dict[str, Any], keys: list[str]) -> None:
    assert problems(**values) == keys


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": {"groups": [{"lr_factor": 2.0}]}},
        {"optimizer": {"groups": [{"match": "*", "lr_factor": 0.0}]}},
        {"optimizer": {"groups": [{"match": "*", "name": "sgd"}]}},
        {"optimizer": {"rounding": "nearest"}},
        {"optimizer": {"base_width": 0}},
        {"average": {"decay": 1.0}},
        {"precision": "pure"},
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Stage.model_validate(values)
