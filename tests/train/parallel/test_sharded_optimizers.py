"""Optimizers on two ranks that share their parameters do what one does alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from llmkit.train.optimizers.averaging import evaluation_weights
from llmkit.train.optimizers.build import build_optimizers
from llmkit.train.optimizers.config import OptimizerConfig

# Some that two ranks do not share evenly.
SHAPES = {"a": (5, 8), "b": (8, 6), "c": (7,), "d": (3, 4, 6)}
SETTINGS: list[tuple[dict[str, Any], torch.dtype]] = [
    ({}, torch.float32),
    ({"rounding": "stochastic", "state": "bf16"}, torch.bfloat16),
    ({"rounding": "kahan", "offload": True}, torch.bfloat16),
]


def whole(tensor: Tensor) -> Tensor:
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone().float()


def steps(parameters: Mapping[str, Tensor], config: OptimizerConfig, mesh: DeviceMesh) -> dict[str, Tensor]:
    """Weights after a few steps, and those to be evaluated."""
    model = nn.ParameterDict({name: nn.Parameter(value) for name, value in parameters.items()})
    average = None if config.name == "schedule-free" else 0.9
    optimizers = build_optimizers(model, config, torch.float32, seed=3, average=average)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for name, parameter in model.items():
            gradient = torch.randn(SHAPES[name], generator=generator).to(parameter.dtype)
            distributed = isinstance(parameter, DTensor)
            parameter.grad = distribute_tensor(gradient, mesh, parameter.placements) if distributed else gradient
        for optimizer in optimizers:
            optimizer.step()
    found = {name: whole(parameter) for name, parameter in model.items()}
    with evaluation_weights(optimizers):
        return found | {f"{name} evaluated": whole(parameter) for name, parameter in model.items()}


def on_each_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    for name in ("adamw", "lion", "adafactor", "schedule-free"):
        compare(name, mesh)
    dist.destroy_process_group()


def compare(name: str, mesh: DeviceMesh) -> None:
    # Sums over ranks, of which adafactor has some, are in another order, and bfloat16 would show that now and then.
    exact = name != "adafactor"
    for settings, dtype in SETTINGS if exact else SETTINGS[:1]:
        config = OptimizerConfig.model_validate({"name": name, "lr": 0.01, **settings})
        generator = torch.Generator().manual_seed(0)
        start = {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in SHAPES.items()}
        alone = steps({key: value.clone() for key, value in start.items()}, config, mesh)
        for dim in (0, 1):
            parts = {
                key: distribute_tensor(value, mesh, [Shard(min(dim, value.dim() - 1))]) for key, value in start.items()
            }
            shared = steps(parts, config, mesh)
            torch.testing.assert_close(shared, alone, rtol=0, atol=0 if exact else 1e-6)


def test_two_ranks_end_with_the_same_weights_as_one(tmp_path: Path) -> None:
    run_ranks(on_each_rank, 2, str(tmp_path))
