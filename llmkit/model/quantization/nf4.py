"""Weights in NF4, the 4-bit format of QLoRA (Dettmers et al. 2023), by bitsandbytes."""

from __future__ import annotations

import logging
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.errors import ModelError
from llmkit.model.quantization.linear import QuantizedLinear

BLOCK = 64


class NF4Linear(QuantizedLinear):
    """Each 64 weights in a row-major walk are a scale times levels between -1 and 1, quantiles of the normal law.

    The scale is the block's largest absolute weight, kept in the model's dtype: in bfloat16 it costs 4.25 bits a
    weight in all, where QLoRA's second quantization of float32 scales costs 4.13.

    Attributes:
        codes: uint8 [outputs x inputs / 2, 1], the first code of a byte in its high half.
        scale: one for each block.

    Raises:
        ModelError: bitsandbytes is not installed.
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None = None) -> None:
        super().__init__(weight.shape[0], weight.shape[1], bias)
        functional = bitsandbytes().functional
        codes, state = functional.quantize_4bit(weight.detach().contiguous(), blocksize=BLOCK, quant_type="nf4")
        self.register_buffer("codes", codes)
        self.register_buffer("scale", state.absmax.to(weight.dtype))

    def multiply(self, x: Tensor) -> Tensor:
        """x W', [..., inputs] to [..., outputs]."""
        return F.linear(x, self._dense(x.dtype))

    def dense_weight(self) -> Tensor:
        """[outputs, inputs], in the scale's dtype."""
        return self._dense(self.scale.dtype)

    def _dense(self, dtype: torch.dtype) -> Tensor:
        shape = (self.out_features, self.in_features)
        dense: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
            self.codes, self.scale.float(), BLOCK, "nf4", shape, dtype
        )
        return dense


def bitsandbytes() -> ModuleType:
    """The library; raises ModelError where it is missing."""
    # It warns of an optional kernel from the network, which is not wanted here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except ImportError:
        raise ModelError(
            "nf4 weights need bitsandbytes, which is not installed.", hint="pip install 'llmkit[quantization]'"
        ) from None
    module: ModuleType = bitsandbytes
    return module
