from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from llmkit.train.optimizers.averaging import evaluation_weights
from llmkit.train.optimizers.build import build_optimizers, set_learning_rate
from llmkit.train.optimizers.config import OptimizerConfig
from llmkit.train.optimizers.schedule_free import ScheduleFree


def test_it_follows_algorithm_1_of_the_paper() -> None:
    """x, y and z kept apart in float64, as the paper writes them; weights alone where only y is known."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 4))
    parameter = nn.Parameter(torch.tensor(start))
    optimizer = ScheduleFree([parameter], lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.2)
    x, z, v, total = start.copy(), start.copy(), np.zeros_like(start), 0.0
    for t in range(1, 8):
        y = 0.2 * z + 0.8 * x
        np.testing.assert_allclose(parameter.detach().numpy(), y, rtol=1e-12)
        g = rng.normal(size=(3, 4))
        lr = 0.1 * min(1.0, t / 4)
        v = 0.95 * v + 0.05 * g * g
        rate = lr * np.sqrt(1 - 0.95**t)
        z = z - rate * g / (np.sqrt(v) + 1e-6) - rate * 0.2 * y
        total += rate**2
        c = rate**2 / total
        x = (1 - c) * x + c * z
        parameter.grad = torch.tensor(g)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        point = optimizer.evaluation_point(parameter)
        assert point is not None
        np.testing.assert_allclose(point.numpy(), x, rtol=1e-9)


def test_the_model_is_the_average_and_training_goes_on_from_the_same_bits() -> None:
    layer = nn.Linear(4, 3)
    optimizers = build_optimizers(layer, OptimizerConfig(name="schedule-free", lr=0.1), torch.float32)
    for _ in range(3):
        layer(torch.randn(2, 4)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), evaluation_weights(optimizers):
        # x = (y - (1 - b1) z) / b1
        fast = optimizers[0].state[layer.weight]["fast"]
        torch.testing.assert_close(layer.weight.detach(), (before["weight"] - 0.1 * fast) / 0.9)
        assert not torch.equal(layer.weight, before["weight"])
        raise KeyboardInterrupt
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_it_reaches_the_minimum_of_a_noisy_square_where_adamw_at_the_same_constant_rate_does_not() -> None:
    target, found = torch.linspace(-1, 1, 64), {}
    for name in ("adamw", "schedule-free"):
        layer = nn.Linear(64, 1, bias=False)
        with torch.no_grad():
            layer.weight.zero_()
        noise = torch.Generator().manual_seed(1)
        config = OptimizerConfig.model_validate({"name": name, "lr": 0.05, "weight_decay": 0.0})
        optimizers = build_optimizers(layer, config, torch.float32)
        for _ in range(600):
            set_learning_rate(optimizers, 0.05)
            layer.weight.grad = layer.weight.detach() - target + torch.randn(64, generator=noise)
            optimizers[0].step()
        with evaluation_weights(optimizers):
            found[name] = float((layer.weight.detach() - target).square().mean())
    assert found["schedule-free"] < found["adamw"] / 4
