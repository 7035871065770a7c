from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toy_run import run_toy

from llmkit.errors import Interrupted
from llmkit.store.files import sha256_tree
from llmkit.train.optimizers.averaging import evaluation_weights
from llmkit.train.optimizers.build import build_optimizers
from llmkit.train.optimizers.config import OptimizerConfig


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_the_average_follows_its_definition(name: str) -> None:
    layer, rng = nn.Linear(3, 2), np.random.default_rng(0)
    config = OptimizerConfig.model_validate({"name": name, "lr": 0.1})
    optimizers = build_optimizers(layer, config, torch.float32, average=0.5)
    average = layer.weight.detach().double().numpy().copy()
    for step in range(1, 12):
        for parameter in layer.parameters():
            parameter.grad = torch.tensor(rng.normal(size=tuple(parameter.shape)), dtype=torch.float32)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * layer.weight.detach().double().numpy()
    trained = layer.weight.detach().clone()
    with evaluation_weights(optimizers):
        np.testing.assert_allclose(layer.weight.detach().numpy(), average, rtol=1e-5)
    assert torch.equal(layer.weight, trained)


def test_the_average_of_weights_in_bfloat16_has_the_precision_of_float32() -> None:
    weight = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    holder = nn.ParameterDict({"weight": weight})
    config = OptimizerConfig(lr=1e-3, betas=[0.0, 0.0], weight_decay=0.0, rounding="kahan")
    (optimizer,) = build_optimizers(holder, config, torch.float32, average=0.9)
    expected, value = 1.0, 1.0
    for step in range(1, 40):
        weight.grad = torch.full_like(weight, -1.0)
        optimizer.step()
        value += 1e-3
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    np.testing.assert_allclose(optimizer.state[weight]["average"].numpy(), expected, rtol=5e-6)


SETTINGS: list[dict[str, Any]] = [
    {"average": {"decay": 0.9}, "optimizer": {"name": "muon"}},
    {"optimizer": {"name": "schedule-free", "lr": 3e-3}, "schedule": {"name": "constant"}},
    {"precision": "bf16-pure", "optimizer": {"rounding": "stochastic", "state": "bf16"}},
    {"precision": "bf16-pure", "optimizer": {"rounding": "kahan", "name": "normuon"}, "average": {}},
    {"optimizer": {"name": "adafactor", "groups": [{"match": "token.*", "lr_factor": 0.5}], "offload": True}},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_interrupted_and_gone_on_it_ends_with_the_same_bytes(tmp_path: Path, settings: dict[str, Any]) -> None:
    import toy_run

    class Stopping(toy_run.ToySource):
        def batches(self, step: int) -> Any:
            if step == 11:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batches(step)

    settings = {"precision": "fp32", **settings, "steps": 20, "evaluate_every": 3}
    run_toy(tmp_path / "whole", **settings)
    original = toy_run.ToySource
    toy_run.ToySource = Stopping  # type: ignore[misc]
    try:
        with pytest.raises(Interrupted):
            run_toy(tmp_path / "stopped", **settings)
    finally:
        toy_run.ToySource = original  # type: ignore[misc]
    run_toy(tmp_path / "stopped", **settings)
    assert sha256_tree(tmp_path / "stopped" / "model") == sha256_tree(tmp_path / "whole" / "model")


def test_the_average_is_the_model_that_is_evaluated_and_saved(tmp_path: Path) -> None:
    """With a decay that never ends its start, the average of two steps is known from what each of them gives."""
    from toy_run import ToyModel

    common: dict[str, Any] = {"precision": "fp32", "schedule": {"name": "constant", "warmup_steps": 0}}
    results = [run_toy(tmp_path / str(steps), **common, steps=steps) for steps in (1, 2)]
    averaged = run_toy(tmp_path / "averaged", **common, steps=2, average={"decay": 0.999})
    first, second, found = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("1", "2", "averaged")
    )
    for name, start in ToyModel().named_parameters():
        once = 2 / 11 * start.detach() + 9 / 11 * first[name]
        torch.testing.assert_close(found[name], 3 / 12 * once + 9 / 12 * second[name])
    # What is learned is the same; what is evaluated is not.
    assert averaged.summary["train_loss"] == results[1].summary["train_loss"]
    assert averaged.summary["validation_loss"] != results[1].summary["validation_loss"]
