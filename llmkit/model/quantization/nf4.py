"""Weights in NF4, the 4-bit format of QLoRA (Dettmers et al. 2023), by bitsandbytes."""

from __future__ import annotations

import functools
import logging
from types import ModuleType
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.errors import ModelError
from llmkit.model.quantization.linear import QuantizedLinear

BLOCK = 64
# The CPU's kernel for few rows takes codes of so many outputs at a time.
_TILE = 32
# Measured at the widths of SmolLM2: with more rows, making the weight dense first is faster.
_MOST_ROWS = 128


class NF4Linear(QuantizedLinear):
    """Each 64 weights in a row-major walk are a scale times levels between -1 and 1, quantiles of the normal law.

    The scale is the block's largest absolute weight, kept in the model's dtype: in bfloat16 it costs 4.25 bits a
    weight in all, where QLoRA's second quantization of float32 scales costs 4.13.

    On CPUs with bfloat16 instructions, the first product of few rows puts codes and scales in the order that the
    kernel for such products reads (`tiled`). They are put back before they move, are cast or are saved.

    Attributes:
        codes: uint8 [outputs x inputs / 2, 1], the first code of a byte in its high half.
        scale: one for each block.

    Raises:
        ModelError: bitsandbytes is not installed.
    """

    scale: Tensor
    along_outputs: ClassVar[dict[str, int]] = {"codes": 0, "scale": 1}

    def __init__(self, weight: Tensor, bias: nn.Parameter | None = None) -> None:
        super().__init__(weight.shape[0], weight.shape[1], bias)
        functional = bitsandbytes().functional
        codes, state = functional.quantize_4bit(weight.detach().contiguous(), blocksize=BLOCK, quant_type="nf4")
        self.register_buffer("codes", codes)
        self.register_buffer("scale", state.absmax.to(weight.dtype))
        self.tiled = False
        self._tiles = self.out_features % _TILE == 0 and self.in_features % BLOCK == 0 and _has_kernel()

    @property
    def _shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def prepare_to_join(self) -> bool:
        """Put the codes in tiles, if there is a kernel that reads such."""
        if self._tiles:
            self._order(tiled=True)
        return self._tiles

    def multiply(self, x: Tensor) -> Tensor:
        """x W', [..., inputs] to [..., outputs]."""
        if self._tiles and x.is_cpu and x.dtype == torch.bfloat16 and x.numel() <= _MOST_ROWS * self.in_features:
            self._order(tiled=True)
            # The scales of a part of a joined map are strided.
            scale = self.scale.contiguous()
            product: Tensor = _few_rows()(x.contiguous(), self.codes, self._shape, scale, _levels(), BLOCK)
            return product
        if not x.is_cuda:
            return F.linear(x, self._dense(x.dtype))
        operations: Any = torch.ops.bitsandbytes
        whole: Tensor = operations.gemm_4bit(x, self.codes, self._shape, self.scale.float(), BLOCK, "nf4")
        return whole

    def dense_weight(self) -> Tensor:
        """[outputs, inputs], in the scale's dtype."""
        return self._dense(self.scale.dtype)

    def _dense(self, dtype: torch.dtype) -> Tensor:
        codes, scale = self._rows() if self.tiled else (self.codes, self.scale)
        # The CPU's kernel (0.50) takes a wrong scale where a row ends within a block, unless all are one row.
        shape = self._shape if self.in_features % BLOCK == 0 else (1, self.out_features * self.in_features)
        operations: Any = torch.ops.bitsandbytes
        dense: Tensor = operations.dequantize_4bit(codes, scale.float(), BLOCK, "nf4", shape, dtype)
        return dense.view(self._shape)

    def _order(self, *, tiled: bool) -> None:
        if tiled != self.tiled:
            self.codes, self.scale = self._rows() if self.tiled else self._tiled()
            self.tiled = tiled

    def _tiled(self) -> tuple[Tensor, Tensor]:
        """Byte [tile, pair of inputs, 2 x row + input] holds rows r (low half) and r + 16 (high half) of a tile."""
        low, high = self.codes.view(-1, 2, _TILE // 2, self.in_features // 2).unbind(1)
        even, odd = (high & 0xF0) | (low >> 4), (high << 4) | (low & 0xF)
        codes = torch.stack((even, odd), dim=-1).transpose(1, 2).contiguous()
        return codes.view(-1, 1), self.scale.view(self.out_features, -1).t().contiguous()

    def _rows(self) -> tuple[Tensor, Tensor]:
        """The inverse of `_tiled`."""
        pairs = self.codes.view(-1, self.in_features // 2, _TILE // 2, 2).transpose(1, 2)
        even, odd = pairs.unbind(-1)
        codes = torch.stack(((even << 4) | (odd & 0xF), (even & 0xF0) | (odd >> 4)), dim=1)
        return codes.view(-1, 1), self.scale.t().contiguous().view(-1)

    def _apply(self, *args: Any, **settings: Any) -> Self:
        self._order(tiled=False)
        super()._apply(*args, **settings)
        return self

    def _save_to_state_dict(self, *args: Any, **settings: Any) -> None:
        self._order(tiled=False)
        super()._save_to_state_dict(*args, **settings)

    def _load_from_state_dict(self, *args: Any, **settings: Any) -> None:
        self._order(tiled=False)
        super()._load_from_state_dict(*args, **settings)


@functools.cache
def _has_kernel() -> bool:
    return bool(bitsandbytes().functional.has_avx512bf16())


@functools.cache
def _few_rows() -> Any:
    return torch.ops.bitsandbytes.gemv_4bit.default


@functools.cache
def _levels() -> Tensor:
    levels: Tensor = bitsandbytes().functional.get_4bit_type("nf4", device="cpu")
    return levels


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
