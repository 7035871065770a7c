"""Settings by group of parameters, and what the state takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from toy_run import ToyModel

from llmkit.errors import ConfigError
from llmkit.train.optimizers.build import build_optimizers, set_learning_rate, treatments
from llmkit.train.optimizers.config import OptimizerConfig, state_bytes


def config(**settings: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate(settings)


def test_the_first_group_that_matches_counts_and_says_only_what_it_says() -> None:
    groups = [
        {"match": "blocks.0.*.weight", "lr_factor": 0.5, "weight_decay": 0.7},
        {"match": "blocks.*", "lr_factor": 3.0},
        {"match": "token.weight", "weight_decay": 0.01},
        {"match": "value.*", "name": "lion"},
    ]
    found = treatments(ToyModel(), config(weight_decay=0.1, groups=groups))
    assert found["blocks.0.up.weight"] == ("adamw", 0.5, 0.7)
    assert found["blocks.0.up.bias"] == ("adamw", 3.0, 0.0)
    assert found["blocks.1.up.weight"] == ("adamw", 3.0, 0.1)
    assert found["token.weight"] == ("adamw", 1.0, 0.01)
    assert found["value.weight"] == ("lion", 1.0, 0.1)
    assert found["value.bias"] == ("lion", 1.0, 0.0)


def test_groups_move_at_their_own_rates() -> None:
    """Lion moves every value by its learning rate."""
    model = ToyModel()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    groups = [{"match": "blocks.0.*", "lr_factor": 0.25}, {"match": "value.weight", "weight_decay": 0.5}]
    optimizers = build_optimizers(model, config(name="lion", weight_decay=0.0, groups=groups), torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_learning_rate(optimizers, 0.01)
    for optimizer in optimizers:
        optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 0.01 * 0.5 * (name == "value.weight"))
        expected = expected - (0.0025 if name.startswith("blocks.0.") else 0.01)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-7)


def test_muon_can_be_given_to_some_matrices_and_taken_from_others() -> None:
    groups = [{"match": "blocks.0.*.weight", "name": "muon"}]
    with pytest.raises(ConfigError, match=r"`blocks.0.norm.weight` is a vector"):
        treatments(ToyModel(), config(groups=groups))
    groups = [{"match": "blocks.1.*", "name": "adafactor"}]
    found = treatments(ToyModel(), config(name="muon", groups=groups))
    assert {name for name, treatment in found.items() if treatment.optimizer == "muon"} == {
        "blocks.0.up.weight",
        "blocks.0.down.weight",
    }
    assert found["blocks.1.norm.bias"].optimizer == "adafactor"


def test_a_pattern_that_matches_nothing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"`block.0.up.weight`") as raised:
        build_optimizers(ToyModel(), config(groups=[{"match": "block.0.up.weight"}]), torch.float32)
    assert "blocks.0.up.weight" in str(raised.value.hint)


@pytest.mark.parametrize("name", ["adamw", "muon", "normuon", "lion", "adafactor", "schedule-free"])
@pytest.mark.parametrize("state", ["fp32", "bf16"])
@pytest.mark.parametrize("pure", [False, True])
def test_the_bytes_of_state_are_those_that_are_kept(name: str, state: str, pure: bool) -> None:
    model = ToyModel()
    model = model.bfloat16() if pure else model
    settings = config(name=name, state=state, rounding="kahan" if pure else "stochastic")
    optimizers = build_optimizers(model, settings, torch.float32, average=0.99)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    inside = {id(parameter) for parameter in model.blocks.parameters()}
    for optimizer in optimizers:
        for parameter, values in optimizer.state.items():
            kept = sum(value.numel() * value.element_size() for value in values.values() if value.dim())
            hidden = id(parameter) in inside and parameter.dim() == 2
            assert state_bytes(settings, parameter.shape, hidden=hidden, average=True, pure=pure) == kept


def test_a_frozen_model_with_one_free_layer_has_state_for_that_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    model[1].requires_grad_(True)
    found = treatments(model, config(groups=[{"match": "1.*", "lr_factor": 2.0}]))
    assert found == {"1.weight": ("adamw", 2.0, 0.1), "1.bias": ("adamw", 2.0, 0.0)}
