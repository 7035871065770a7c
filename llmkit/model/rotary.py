"""Rotary position embeddings (Su et al. 2021), with the frequency scalings of Llama 3 and of linear interpolation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmkit.model.config import ModelConfig, RopeScaling


def rotary_frequencies(config: ModelConfig, device: torch.device | None = None) -> Tensor:
    """Angular frequency of each pair of features, in radians per token: fp32 [head_width / 2]."""
    exponents = torch.arange(0, config.head_width, 2, dtype=torch.float32, device=device) / config.head_width
    frequencies = 1.0 / (config.rope_theta**exponents)
    if config.rope_scaling is None:
        return frequencies
    if config.rope_scaling.kind == "linear":
        return frequencies / config.rope_scaling.factor
    return _llama3(frequencies, config.rope_scaling)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Divide the frequencies that turn less than `low_freq_factor` times in the original context, keep those that turn
    more than `high_freq_factor` times, and blend in between (Grattafiori et al. 2024)."""
    turns = scaling.original_context * frequencies / (2 * math.pi)
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    share = share.clamp(0.0, 1.0)
    return (1 - share) * frequencies / scaling.factor + share * frequencies


class Rotary(nn.Module):
    """Cosines and sines for given positions. The frequencies stay fp32 whatever the model is converted to."""

    frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # A real device even where the weights are made on "meta": there, `arange` has torch import its symbolic
        # machinery, which takes longer than opening a model.
        self.register_buffer("frequencies", rotary_frequencies(config, torch.device("cpu")), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        super()._apply(fn, recurse)
        self.reset(self.frequencies.device)
        return self

    def reset(self, device: torch.device) -> None:
        """Compute the frequencies anew on a device."""
        self.frequencies = rotary_frequencies(self.config, device)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each [..., L, 1, head_width / 2], for integer positions [..., L]."""
        angles = positions[..., None, None].to(torch.float32) * self.frequencies
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BLHD: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (feature d, feature d + head_width / 2) of every head by its position's angle."""
    first, second = x_BLHD.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
