"""Weights in 8 bits with one scale a row, and token vectors read from such rows."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.model.layers import Embedding
from llmkit.model.quantization.linear import QuantizedLinear

# Measured at the widths of SmolLM2: with more rows, turning the codes into bf16 first is faster.
_MOST_ROWS = 12
_PIECE = 4096


class Int8Linear(QuantizedLinear):
    """w = scale x code with codes from -127 to 127: each row is scaled by its largest absolute weight.

    Attributes:
        codes: int8 [outputs, inputs].
        scale: [outputs], in the dense weight's dtype, rounded before codes are chosen; an error is at most scale / 2.
    """

    scale: Tensor
    along_outputs: ClassVar[dict[str, int]] = {"codes": 0, "scale": 0}

    def __init__(self, weight: Tensor, bias: nn.Parameter | None = None) -> None:
        super().__init__(weight.shape[0], weight.shape[1], bias)
        scale = (weight.detach().abs().amax(dim=1).float() / 127).to(weight.dtype)
        # A row of zeros has codes of zero under any scale.
        scale[scale == 0] = 1
        # The kernel for few rows reads 16 codes of a row at a time.
        self._fits = self.in_features % 16 == 0
        self.register_buffer("codes", torch.empty(weight.shape, dtype=torch.int8, device=weight.device))
        self.register_buffer("scale", scale)
        # In pieces, so that no second copy of a large weight is made in float32.
        for codes, rows, steps in zip(
            self.codes.split(_PIECE), weight.detach().split(_PIECE), scale.float().split(_PIECE), strict=True
        ):
            codes.copy_((rows.float() / steps[:, None]).round_().clamp_(-127, 127))

    def prepare_to_join(self) -> bool:
        """Rows follow rows."""
        return True

    def multiply(self, x: Tensor) -> Tensor:
        """x W', [..., inputs] to [..., outputs]."""
        codes, scale = self.codes, self.scale
        if x.dtype == torch.bfloat16 and x.is_cpu and self._fits:
            rows = (x if x.dim() == 2 else x.reshape(-1, self.in_features)).contiguous()
            if rows.shape[0] <= _MOST_ROWS:
                product = torch._weight_int8pack_mm(rows, codes, scale.bfloat16())
                return product if x.dim() == 2 else product.view(*x.shape[:-1], self.out_features)
        # The codes are exact in any float format, so the scale is better applied to the sum.
        return F.linear(x, codes.to(x.dtype)).mul_(scale.to(x.dtype))

    def dense_weight(self) -> Tensor:
        """[outputs, inputs], in the scale's dtype."""
        return self.codes.to(self.scale.dtype).mul_(self.scale[:, None])


class Int8Embedding(Embedding):
    """Token vectors that are the rows of the output map, which keeps them in 8 bits.

    Args:
        output: the map from width to vocabulary. It stays the head's alone: moved and cast once.
    """

    def __init__(self, output: Int8Linear) -> None:
        # Not nn.Embedding's own beginning, which would make room for a dense weight.
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim, self.padding_idx = output.out_features, output.in_features, None
        # In a tuple, which hides it from the walks over submodules.
        self._output = (output,)

    @property
    def output(self) -> Int8Linear:
        """The output map, whose rows these are."""
        return self._output[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors."""
        return self.output.scale.dtype

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.output.scale.device

    def forward(self, ids: Tensor) -> Tensor:
        """Integer [...] to [..., width]."""
        return F.embedding(ids, self.output.codes).to(self.dtype) * F.embedding(ids, self.output.scale[:, None])

    def extra_repr(self) -> str:
        """Shape, for printing."""
        return f"{self.num_embeddings}, {self.embedding_dim}"
