"""Blocks with routed experts are compiled once, whatever goes where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from llmkit.model.initialization import build
from llmkit.model.spec import ModelSpec
from llmkit.train.blocks import compile_blocks, uncompile


def test_batches_of_other_routings_are_not_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    counter, compile_module = CompileCounter(), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend=counter))
    spec = ModelSpec(family="mixtral", layers=3, width=16, heads=2, experts=6, init_std=0.3)
    model = build(spec.resolve(61, pad_id=0), seed=0)

    def outputs(seed: int) -> list[Any]:
        input_ids = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(seed))
        routing: list[Tensor] = []
        hidden = model.hidden(input_ids, routing=routing)
        model.zero_grad()
        (hidden.square().sum() + sum(scores.square().sum() for scores in routing)).backward()
        return [hidden, *routing, *(parameter.grad.clone() for parameter in model.blocks.parameters())]

    expected = [outputs(seed) for seed in range(4)]
    compiled = compile_blocks(model)
    counts = []
    for seed, wanted in enumerate(expected):
        for found, tensor in zip(outputs(seed), wanted, strict=True):
            torch.testing.assert_close(found, tensor)
        counts.append(counter.frame_count)
    assert counts == [counts[0]] * 4
    assert counts[0] > 0
    uncompile(compiled)
    assert not any("forward" in vars(module) for module in model.modules())
    for found, tensor in zip(outputs(0), expected[0], strict=True):
        assert torch.equal(found, tensor)
