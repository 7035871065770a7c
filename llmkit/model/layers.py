"""The small parts of a block: linear maps, norms, the MLP. None draws random numbers when it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.model import fast_gate
from llmkit.model.config import ModelConfig


class Adapter(Protocol):
    """What may stand on a linear map and change its result, such as LoRA."""

    def __call__(self, linear: Linear, x: Tensor) -> Tensor:
        """The adapted map's result, from `linear.project(x)`."""
        ...


class Linear(nn.Linear):
    """A linear map whose weights are left unset: they are initialised by name and seed, or loaded.

    Attributes:
        adapter: changes the map's result, where it is not None; a submodule, so that its parameters are the model's.
    """

    adapter: Adapter | None

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.adapter = None

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""

    def project(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], without the adapter."""
        return F.linear(x, self.weight, self.bias)

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.weight.device

    def dense_weight(self) -> Tensor:
        """The weight [outputs, inputs] as plain numbers, without the adapter; not to be changed in place."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return self.project(x) if self.adapter is None else self.adapter(self, x)


class Embedding(nn.Embedding):
    """A table of vectors whose weights are left unset, as in `Linear`."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""
        return self.weight.device


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
}


class OffsetRMSNorm(nn.RMSNorm):
    """RMS norm that multiplies by 1 + weight, computed in fp32 (Gemma)."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to [..., width], in the input's precision."""
        normed = F.rms_norm(x.float(), self.normalized_shape, 1.0 + self.weight.float(), self.eps)
        return normed.to(x.dtype)


def make_norm(config: ModelConfig, width: int | None = None) -> nn.Module:
    """The norm that the config names, over `width` features, by default the model's width."""
    features = width or config.width
    if config.norm == "layer":
        return nn.LayerNorm(features, eps=config.norm_eps, bias=config.norm_bias)
    return (OffsetRMSNorm if config.norm_offset else nn.RMSNorm)(features, eps=config.norm_eps)


class MLP(nn.Module):
    """down(activation(up(x))), or with a gate down(activation(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.gate = Linear(config.width, config.mlp_width, config.mlp_bias) if config.gated_mlp else None
        self.up = Linear(config.width, config.mlp_width, config.mlp_bias)
        self.down = Linear(config.mlp_width, config.width, config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to [..., width]."""
        mixed: Tensor = self.down(self._inner(x))
        return mixed

    def _inner(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.activation(self.up(x))
        gate, up = self.gate(x), self.up(x)
        if self.activation is F.silu and fast_gate.fits(gate, up):
            return fast_gate.gated_silu(gate, up)
        gated: Tensor = self.activation(gate) * up
        return gated


class Dropout(nn.Module):
    """Dropout that costs nothing where its rate is zero."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """The input with a share of its values dropped, in training."""
        return F.dropout(x, self.rate) if self.training and self.rate > 0 else x


def compute_dtype(x: Tensor | Embedding) -> torch.dtype:
    """The dtype that matrix products of `x` are computed in: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
