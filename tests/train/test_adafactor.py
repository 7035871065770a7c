from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor as Reference

from llmkit.train.optimizers.adafactor import Adafactor
from llmkit.train.optimizers.build import build_optimizers
from llmkit.train.optimizers.config import OptimizerConfig


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7,), (3, 4, 6)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_it_follows_the_reference_implementation(shape: tuple[int, ...], weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = Adafactor([ours], lr=0.02, weight_decay=weight_decay)
    reference = Reference(
        [theirs], lr=0.02, weight_decay=weight_decay, scale_parameter=False, relative_step=False, warmup_init=False
    )
    for step in range(6):
        # The scale rises and falls, so that updates are clipped at some steps and not at others.
        gradient = torch.randn(shape, generator=generator) * (1.0, 3.0, 0.1, 10.0, 1.0, 0.5)[step]
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-6)


def test_a_matrix_takes_a_number_for_each_row_and_column() -> None:
    layer = nn.Linear(30, 20)
    (optimizer,) = build_optimizers(layer, OptimizerConfig(name="adafactor"), torch.float32)
    layer(torch.ones(1, 30)).sum().backward()
    optimizer.step()
    kept = {name: tuple(value.shape) for name, value in optimizer.state[layer.weight].items()}
    assert kept == {"step": (), "rows": (20,), "columns": (30,)}
