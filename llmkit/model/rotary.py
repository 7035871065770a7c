"""Rotary position embeddings (Su et al. 2021) with the scalings of `RopeScaling`.

Shapes: B sequences, L tokens, F rotated pairs of features, half of the rotated width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmkit.model.config import ModelConfig, RopeScaling


def rotary_frequencies(config: ModelConfig, device: torch.device | None = None, *, local: bool = False) -> Tensor:
    """Angular frequency of each pair of features, in radians per token: fp32 [F].

    Where they depend on the sequence's length, those of one within the context first trained on.

    Args:
        config: the architecture.
        device: where to compute them.
        local: of the local layers, which may have a base of their own and are unscaled then.
    """
    if local and config.local_rope_theta is not None:
        return 1.0 / config.local_rope_theta ** _exponents(config, device)
    frequencies = 1.0 / config.rope_theta ** _exponents(config, device)
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "dynamic":
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling)
    if scaling.kind == "yarn":
        return _yarn(frequencies, config, scaling)
    return frequencies / torch.tensor(scaling.short_factors, device=device)


def _exponents(config: ModelConfig, device: torch.device | None) -> Tensor:
    return torch.arange(0, config.rotary_width, 2, dtype=torch.float32, device=device) / config.rotary_width


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Divide the frequencies that turn less than `low_freq_factor` times in the original context, keep those that turn
    more than `high_freq_factor` times, and blend in between (Grattafiori et al. 2024)."""
    turns = scaling.original_context * frequencies / (2 * math.pi)
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    share = share.clamp(0.0, 1.0)
    return (1 - share) * frequencies / scaling.factor + share * frequencies


def _yarn(frequencies: Tensor, config: ModelConfig, scaling: RopeScaling) -> Tensor:
    """Keep the features that turn more than `beta_fast` times in the original context, divide those that turn less than
    `beta_slow` times, with a ramp over the features in between (Peng et al. 2023, section 3.2)."""

    def feature(turns: float) -> float:
        """The feature, of the whole rotated width, whose pair turns so often in the original context."""
        wavelength = scaling.original_context / (turns * 2 * math.pi)
        return config.rotary_width * math.log(wavelength) / (2 * math.log(config.rope_theta))

    low, high = feature(scaling.beta_fast), feature(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_width - 1)
    if low == high:
        high += 0.001
    pairs = torch.arange(len(frequencies), dtype=torch.float32, device=frequencies.device)
    divided = ((pairs - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies / scaling.factor * divided + frequencies * (1 - divided)


def _at_lengths(config: ModelConfig, scaling: RopeScaling, lengths_B: Tensor, within: Tensor) -> Tensor:
    """Frequencies of sequences of given lengths, [B, F]; `within` are those of sequences within the context."""
    if scaling.kind == "longrope":
        long = torch.tensor(scaling.long_factors, device=within.device)
        beyond_B1 = (lengths_B > scaling.original_context)[:, None]
        return torch.where(beyond_B1, 1.0 / config.rope_theta ** _exponents(config, within.device) / long, within)
    # The base grows so that the lowest frequency spans the longer sequence (bloc97 2023).
    width = config.rotary_width
    stretch_B = scaling.factor * lengths_B.to(torch.float32).clamp(min=config.context) / config.context
    base_B1 = (config.rope_theta * (stretch_B - (scaling.factor - 1)) ** (width / (width - 2)))[:, None]
    return 1.0 / base_B1 ** _exponents(config, within.device)


def attention_factor(config: ModelConfig, *, local: bool = False) -> float:
    """What cosines and sines are multiplied by, to keep the sharpness of attention over longer contexts."""
    scaling = config.rope_scaling
    if scaling is None or (local and config.local_rope_theta is not None):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.kind == "yarn":
        return 0.1 * math.log(scaling.factor) + 1.0
    if scaling.kind == "longrope" and scaling.factor > 1:
        return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_context))
    return 1.0


class Rotary(nn.Module):
    """Cosines and sines for given positions. The frequencies stay fp32 whatever the model is converted to."""

    frequencies: Tensor

    def __init__(self, config: ModelConfig, *, local: bool = False) -> None:
        super().__init__()
        self.config = config
        self.local = local
        self.factor = attention_factor(config, local=local)
        own = local and config.local_rope_theta is not None
        scaling = None if own else config.rope_scaling
        self.by_length = scaling if scaling is not None and scaling.depends_on_length else None
        # A real device even where the weights are made on "meta": there, `arange` has torch import its symbolic
        # machinery, which takes longer than opening a model.
        frequencies = rotary_frequencies(config, torch.device("cpu"), local=local)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        super()._apply(fn, recurse)
        self.reset(self.frequencies.device)
        return self

    def reset(self, device: torch.device) -> None:
        """Compute the frequencies anew on a device."""
        self.frequencies = rotary_frequencies(self.config, device, local=self.local)

    def forward(self, positions: Tensor, dtype: torch.dtype, lengths_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cosines and sines for integer positions [L] or [B, L], each [L, 1, F] or [B, L, 1, F].

        Args:
            positions: each token's place in its sequence.
            dtype: of the result.
            lengths_B: how long each sequence is, where frequencies depend on it; by default one more than the last
                position.
        """
        frequencies = self.frequencies
        if self.by_length is not None:
            lengths_B = (positions.max() + 1).reshape(1) if lengths_B is None else lengths_B
            frequencies = _at_lengths(self.config, self.by_length, lengths_B, frequencies)[:, None, None, :]
        angles = positions[..., None, None].to(torch.float32) * frequencies
        return (angles.cos() * self.factor).to(dtype), (angles.sin() * self.factor).to(dtype)


def rotate(x_BLHD: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (feature d, feature d + F) of every head by its position's angle; features past 2 F stay."""
    width = 2 * cosine.shape[-1]
    rotated, kept = (x_BLHD, None) if width == x_BLHD.shape[-1] else x_BLHD.tensor_split((width,), dim=-1)
    first, second = rotated.chunk(2, dim=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned if kept is None else (*turned, kept), dim=-1)
