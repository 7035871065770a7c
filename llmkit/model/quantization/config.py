"""The kinds of quantization, without torch."""

from __future__ import annotations

from typing import Literal

from llmkit.errors import ConfigError

Quantization = Literal["int8", "int4", "nf4"]
"""How the weights of linear maps are kept, biases aside:

- int8: 8 bits and one scale a row; nearest to the dense model;
- int4: 4 bits, with a scale and an offset for each 32 weights of a row (5 bits a weight); CPUs alone;
- nf4: 4 bits, with a scale for each 64 weights (4.25 bits a weight), on CPUs and GPUs; needs bitsandbytes.
"""

BITS: dict[Quantization, float] = {"int8": 8.0, "int4": 5.0, "nf4": 4.25}
"""Bits a weight in bfloat16 models, without int8's one scale a row."""


def quantization_of(name: str) -> Quantization:
    """The kind that a word names; raises ConfigError where it names none."""
    for kind in BITS:
        if kind == name:
            return kind
    raise ConfigError(f"`{name}` is no quantization.", hint=f"Choose among {', '.join(BITS)}.")
