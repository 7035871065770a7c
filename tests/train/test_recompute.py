"""Activation checkpointing: the same gradient to the bit, and less that is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from llmkit.model.initialization import build
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer
from llmkit.pretrain.batches import Batch
from llmkit.pretrain.config import PretrainConfig
from llmkit.pretrain.objective import LanguageModelling
from llmkit.train.blocks import compile_blocks
from llmkit.train.memory.recompute import recompute_activations

SPECS = {
    "llama": {"family": "llama", "layers": 3, "width": 64, "heads": 4, "kv_heads": 2, "dropout": 0.1},
    "bert": {"family": "bert", "layers": 3, "width": 64, "heads": 4, "dropout": 0.1},
    "mixtral": {
        "family": "mixtral", "layers": 3, "width": 64, "heads": 4, "expert_width": 48, "experts": 4,
        "router_loss_weight": 0.01, "dropout": 0.1,
    },
}  # fmt: skip


def make(name: str) -> Transformer:
    return build(ModelSpec.model_validate({**SPECS[name], "context": 64}).resolve(97, pad_id=0), seed=3).train()


def settings(checkpointing: Any) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {"data": "tokens", "model": SPECS["llama"], "activation_checkpointing": checkpointing}
    )


def passes(model: Transformer, bf16: bool) -> tuple[list[Tensor], int]:
    """Gradients of one batch, and the bytes that blocks keep of it: those of all different tensors saved."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(97, (4, 48), generator=generator)
    positions = None if model.config.causal else torch.arange(0, ids.numel(), 7)
    targets = ids.flatten() if positions is None else ids.flatten()[positions]
    kept: dict[tuple[int, int], int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr(), tensor.numel()] = tensor.nbytes
        return tensor

    torch.manual_seed(11)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16), saved_tensors_hooks(pack, lambda tensor: tensor):
        output = LanguageModelling().loss(model, Batch(ids, targets, positions))
    size = sum(kept.values())
    output.sum.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None], size


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", list(SPECS))
def test_gradients_are_those_without_it_to_the_bit(name: str, bf16: bool) -> None:
    expected, everything = passes(make(name), bf16)
    for checkpointing in ("selective", "full", {"blocks": 2}):
        model = make(name)
        recompute_activations(model, settings(checkpointing))
        found, kept = passes(model, bf16)
        assert len(found) == len(expected)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
        assert kept < everything


def test_kept_are_the_blocks_inputs_alone() -> None:
    model = make("llama")
    _, everything = passes(model, False)
    full = make("llama")
    recompute_activations(full, settings("full"))
    _, least = passes(full, False)
    partial = make("llama")
    recompute_activations(partial, settings({"blocks": 1}))
    _, some = passes(partial, False)
    # Blocks are alike: recomputing one of three saves a third of what recomputing all does.
    assert some == pytest.approx(everything - (everything - least) / 3, rel=0.03)
    # Hooks see nothing of what checkpointed blocks hold; their inputs are the float32 rows of a residual stream each.
    assert least < everything / 3


def test_parameters_keep_their_names_and_nothing_is_recomputed_without_gradients() -> None:
    plain, model = make("llama").eval(), make("llama").eval()
    recompute_activations(model, settings("full"))
    assert list(model.state_dict()) == list(plain.state_dict())
    ids = torch.arange(24)[None]
    with torch.no_grad():
        assert torch.equal(model(ids), plain(ids))


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_compiled_blocks_give_the_same_gradient_within_rounding(checkpointing: str) -> None:
    expected, _ = passes(make("llama"), False)
    model = make("llama")
    recompute_activations(model, settings(checkpointing))
    for module in compile_blocks(model):
        module.compile(backend="aot_eager")
    found, _ = passes(model, False)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
