"""Random weights that depend on the seed and the parameter's name alone, and disturb no other random state."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from llmkit.model.config import ModelConfig
from llmkit.model.layers import OffsetRMSNorm
from llmkit.model.transformer import Transformer

_RESIDUAL = (".attention.output.weight", ".mlp.down.weight", ".mlp.experts.down.weight")
"""Matrices that write to the residual stream."""


def build(config: ModelConfig, *, seed: int) -> Transformer:
    """A new model with random fp32 weights on the CPU."""
    model = Transformer(config)
    initialize(model, seed)
    return model


def outline(config: ModelConfig) -> Transformer:
    """A new model whose parameters have shapes and no memory, on "meta"."""
    with torch.device("meta"):
        return Transformer(config)


@torch.no_grad()
def initialize(
    model: Transformer,
    seed: int,
    names: Collection[str] | None = None,
    put: Callable[[Tensor, Tensor], object] = Tensor.copy_,
) -> None:
    """Draw the parameters `names` (all, by default) anew, one after the other.

    Matrices are normal with the config's `init_std`. With `scaled_residual_init`, those that write to the residual
    stream are divided by sqrt(2 x layers), so that its variance does not grow with depth (Radford et al. 2019). Biases
    are zero, norms one, and the padding token's vector zero in families that have token types, as in BERT.

    `put(parameter, values)` sets one; a model whose parameters are in parts can have its own.
    """
    norms = {
        f"{path}.weight": 0.0 if isinstance(module, OffsetRMSNorm) else 1.0
        for path, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.RMSNorm)
    }
    for name, parameter in model.named_parameters():
        if names is not None and name not in names:
            continue
        if name in norms:
            put(parameter, torch.full(parameter.shape, norms[name]))
        elif name.endswith(".bias"):
            put(parameter, torch.zeros(parameter.shape))
        else:
            put(parameter, _drawn(model.config, parameter.shape, seed, name))


def _drawn(config: ModelConfig, shape: torch.Size, seed: int, name: str) -> Tensor:
    values = _normal(shape, _std(config, name), seed, name)
    pads = name == "embeddings.token.weight" and config.token_types and config.pad_id is not None
    if pads and config.pad_id is not None and config.pad_id < len(values):
        values[config.pad_id].zero_()
    return values


def _std(config: ModelConfig, name: str) -> float:
    if config.scaled_residual_init and name.endswith(_RESIDUAL):
        return config.init_std / math.sqrt(2 * config.layers)
    return config.init_std


def _normal(shape: torch.Size, std: float, seed: int, name: str) -> Tensor:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
