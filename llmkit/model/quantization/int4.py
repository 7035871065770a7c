"""Weights in 4 bits with a scale and an offset for each 32 of a row (the form of GGUF's Q4_1), for CPUs.

The product is torch's own kernel, which reads the codes once and widens them in registers.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.errors import ModelError
from llmkit.model.quantization.linear import QuantizedLinear

GROUP = 32
_ROWS = 16
# The kernel's layout comes in blocks of at most so many rows: whole ones are laid out as in any larger weight.
_BLOCK = 64
_PIECE = 256


class Int4Linear(QuantizedLinear):
    """w = scale x (code - 8) + offset, codes from 0 to 15: each group's lowest weight has code 0, its highest 15.

    Products are made of bfloat16 activations with sums in float32, whatever the model's dtype.

    Attributes:
        codes: uint8, two codes a byte in the layout of this machine's kernel.
        scales: bfloat16 [inputs / 32, outputs, 2], scale and offset; inputs and outputs filled up with zeros.
    """

    scales: Tensor
    along_outputs: ClassVar[dict[str, int]] = {"codes": 0, "scales": 1}

    def __init__(self, weight: Tensor, bias: nn.Parameter | None = None) -> None:
        super().__init__(weight.shape[0], weight.shape[1], bias)
        if weight.device.type != "cpu":
            raise ModelError("int4 weights are for CPUs.", hint="Choose nf4 or int8 on this device.")
        self._whole = self.in_features % GROUP == 0 and self.out_features % _ROWS == 0
        outputs, inputs = (size + -size % unit for size, unit in zip(weight.shape, (_ROWS, GROUP), strict=True))
        self.register_buffer("codes", torch.empty(outputs, inputs // 2, dtype=torch.uint8))
        self.register_buffer("scales", torch.empty(inputs // GROUP, outputs, 2, dtype=torch.bfloat16))
        # In pieces, so that no second copy of a large weight is made in float32.
        for start in range(0, outputs, _PIECE):
            rows = weight.detach()[start : start + _PIECE].float()
            end = min(start + _PIECE, outputs)
            filled = F.pad(rows, (0, inputs - self.in_features, 0, end - start - len(rows)))
            codes, scales = _quantized(filled.view(end - start, -1, GROUP))
            self.codes[start:end] = torch._convert_weight_to_int4pack_for_cpu(codes.flatten(1), 1)
            self.scales[:, start:end] = scales.transpose(0, 1)

    def prepare_to_join(self) -> bool:
        """Whether the rows fill the kernel's blocks."""
        return self._whole and self.out_features % _BLOCK == 0

    def multiply(self, x: Tensor) -> Tensor:
        """x W', [..., inputs] to [..., outputs]."""
        if not x.is_cpu:
            raise ModelError("int4 weights are for CPUs.", hint="Choose nf4 or int8 on this device.")
        # Those of a part of a joined map are strided.
        codes, scales = self.codes, self.scales.contiguous()
        if self._whole and x.dtype == scales.dtype == torch.bfloat16 and x.is_contiguous():
            # Every microsecond counts where one token is written at a time.
            if x.dim() == 2:
                return torch._weight_int4pack_mm_for_cpu(x, codes, GROUP, scales)
            flat = torch._weight_int4pack_mm_for_cpu(x.flatten(0, -2), codes, GROUP, scales)
            return flat.view(*x.shape[:-1], self.out_features)
        rows = F.pad(x.reshape(-1, self.in_features).bfloat16(), (0, -self.in_features % GROUP))
        product = torch._weight_int4pack_mm_for_cpu(rows.contiguous(), codes, GROUP, scales.bfloat16())
        return product[:, : self.out_features].to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def dense_weight(self) -> Tensor:
        """[outputs, inputs], in the scales' dtype: the kernel's product with unit vectors, which rounds each once."""
        return self.multiply(torch.eye(self.in_features, dtype=self.scales.dtype)).t().contiguous()


def _quantized(groups: Tensor) -> tuple[Tensor, Tensor]:
    """int32 codes, as `groups` [rows, groups, 32], and bfloat16 scales and offsets, [rows, groups, 2]."""
    lowest, highest = groups.amin(dim=2), groups.amax(dim=2)
    flat = highest == lowest
    scale = torch.where(flat, 1.0, (highest - lowest) / 15).bfloat16().float()
    offset = torch.where(flat, lowest, lowest + 8 * scale).bfloat16()
    steps = (groups - offset.float()[:, :, None]) / scale[:, :, None]
    codes = (steps.round_() + 8).clamp_(0, 15).to(torch.int32)
    return codes, torch.stack([scale.bfloat16(), offset], dim=2)
