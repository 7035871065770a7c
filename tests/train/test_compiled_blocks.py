"""Compiled blocks: the same numbers, and no compilation anew once sizes are known to vary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from llmkit.model.initialization import build
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer
from llmkit.train.blocks import compile_blocks


def _passes(model: Transformer, rows: int, length: int, *, train: bool) -> list[Tensor]:
    """The output, and in training all gradients, under bfloat16 autocast."""
    input_ids = torch.randint(61, (rows, length), generator=torch.Generator().manual_seed(rows * length))
    model.train(train)
    model.zero_grad()
    with torch.set_grad_enabled(train), torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.hidden(input_ids)
    if not train:
        return [hidden]
    hidden.float().square().sum().backward()
    return [hidden, *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_other_lengths_partial_batches_and_evaluation_are_not_compiled_anew(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    torch._dynamo.reset()  # What other tests have compiled, with which sizes, is no matter of this one.
    counter, compile_module = CompileCounterWithBackend("aot_eager"), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend=counter))
    spec = ModelSpec(family=family, layers=3, width=64, heads=2)
    model, plain = (build(spec.resolve(61, pad_id=0), seed=0) for _ in range(2))
    compile_blocks(model)
    # Full batches, evaluation, and each once more in another size.
    for rows, length, train in ((4, 40, True), (4, 40, False), (3, 24, True), (3, 24, False)):
        _passes(model, rows, length, train=train)
    compiled = counter.frame_count
    assert 0 < compiled <= 4
    for rows, length, train in ((4, 40, True), (2, 40, True), (4, 150, True), (3, 33, False), (4, 17, True)):
        found, expected = (_passes(each, rows, length, train=train) for each in (model, plain))
        for ours, wanted in zip(found, expected, strict=True):
            assert (ours - wanted).norm() <= 0.02 * wanted.norm()
    assert counter.frame_count == compiled
