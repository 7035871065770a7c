"""Linear maps in the form in which a model writes: those of one input as one, their weights laid out for the kernels.

Shapes: T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.model.layers import Linear, compute_dtype
from llmkit.model.quantization.join import join
from llmkit.model.quantization.quantize import is_quantized
from llmkit.model.transformer import Transformer

Layout = Literal["modules", "packed", "halves", "rows"]
"""Where weights are read: from the modules, in oneDNN's order, in FBGEMM's order, or from the modules by compiled code.
Many rows are fastest packed where the CPU has products in bf16, and in halves where it has none; one row is in halves,
and in compiled code where its weights are."""


@dataclass(frozen=True)
class Precision:
    """How products are computed.

    Attributes:
        dtype: of what goes between the products.
        inputs: of what modules take.
        autocast: whether weights are kept in another precision and cast by autocast.
        layout: where weights are read, if they are plain ones.
        steady: whether rows in halves are to be the same bits however many there are.
    """

    dtype: torch.dtype
    inputs: torch.dtype
    autocast: bool
    layout: Layout
    steady: bool = False

    @property
    def kept(self) -> torch.dtype:
        """What the cache's keys and values are rounded to."""
        return self.inputs if self.steady else self.dtype

    @property
    def exact(self) -> bool:
        """Whether weights of fewer bits are computed with in fp32."""
        return self.layout in ("halves", "rows")

    @classmethod
    def of(cls, model: Transformer, layout: Layout) -> Precision:
        """The precision that the model computes in at present, and a layout if there is such a one here."""
        weight = model.embeddings.token
        dtype, autocast = compute_dtype(weight), torch.is_autocast_enabled(weight.device.type)
        if layout == "rows" and weight.device.type == "cpu" and not autocast and not is_quantized(model):
            return cls(torch.float32, dtype, autocast, layout)
        if weight.device.type == "cpu" and dtype == torch.bfloat16:
            if layout == "packed" and torch.backends.mkldnn.is_available() and _mkldnn()._is_mkldnn_bf16_supported():
                return cls(dtype, dtype, autocast, layout)
            # Maps that are quantized keep to bf16, and their kernels need what surrounds them in it.
            if layout in ("packed", "halves") and _has_halves() and not is_quantized(model):
                return cls(torch.float32, dtype, autocast, "halves", steady=layout == "packed")
        return cls(dtype, dtype, autocast, "modules")

    def call(self, module: nn.Module, x: Tensor) -> Tensor:
        """A module's result, under autocast where its weights rely on it."""
        if not self.autocast:
            plain: Tensor = module(x.to(self.inputs))
            return plain.to(self.dtype)
        with torch.autocast(x.device.type, self.inputs):
            cast: Tensor = module(x.to(self.inputs))
        return cast.to(self.dtype)


def _mkldnn() -> Any:
    return torch.ops.mkldnn


def _has_halves() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


def is_plain(linear: nn.Module) -> bool:
    """Whether a linear map is its weight and bias, and nothing else."""
    return type(linear) is Linear and linear.adapter is None


# The largest number of half precision.
_LARGEST_HALF = 65504.0


class Projection:
    """Linear maps of the same input as one: [T, inputs] to [T, outputs of all of them].

    In halves: FBGEMM keeps weights in fp16, which holds what bf16 does but for numbers below 6e-8 and above 65504, and
    computes in fp32; it reads one row's weights at up to twice the rate of oneDNN.
    """

    def __init__(self, linears: Sequence[Linear], precision: Precision) -> None:
        self.linears, self.precision = linears, precision
        self.packed: Any = None
        self.halves: Any = None
        self.bias: Tensor | None = None
        self.joined = join(linears) if precision.layout == "packed" and not precision.autocast else None
        plain = all(is_plain(linear) for linear in linears)
        # Weights and biases themselves: compiled code checks less of a tensor than of a module.
        self.rows: list[tuple[Tensor, Tensor | None]] = []
        if plain and precision.layout == "rows":
            self.rows = [(linear.weight.detach(), _detached(linear.bias)) for linear in linears]
        if not plain or precision.layout in ("modules", "rows"):
            return
        weight = torch.cat([linear.weight.detach().to(precision.inputs) for linear in linears])
        if linears[0].bias is not None:
            self.bias = torch.cat([linear.bias.detach().to(precision.dtype) for linear in linears])
        if precision.layout == "packed":
            self.packed = _mkldnn()._reorder_linear_weight(weight, 1)
            self._unary: Any = _mkldnn()._linear_pointwise.default
            self._binary: Any = _mkldnn()._linear_pointwise.binary
        elif weight.abs().amax() <= _LARGEST_HALF:
            self.halves = torch.ops.quantized.linear_prepack_fp16(weight.float(), self.bias)
            self._unary = torch.ops.quantized.linear_dynamic_fp16.default

    def __call__(self, x: Tensor, activation: tuple[str, str] = ("none", "")) -> Tensor:
        """The product, through an activation that oneDNN names where the weights are packed."""
        if self.packed is not None:
            product: Tensor = self._unary(x, self.packed, self.bias, activation[0], [], activation[1])
            return product
        if self.halves is not None:
            # FBGEMM takes up to six rows at once, and sums otherwise where only one or two are left.
            lacking = 3 - len(x) % 6 if self.precision.steady and len(x) % 6 in (1, 2) else 0
            exact: Tensor = self._unary(F.pad(x, (0, 0, 0, lacking)) if lacking else x, self.halves)
            return exact[: len(x)]
        if self.joined is not None:
            return self.joined.project(x)
        if self.rows and torch.compiler.is_compiling():
            # A tensor of its own: else the compiler computes what gives x anew for each row of weights.
            x = torch.as_strided(x, x.shape, x.stride())
            parts = [_by_rows(*part, x) for part in self.rows]
        else:
            parts = [self.precision.call(linear, x) for linear in self.linears]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + product."""
        if self.packed is None or residual.dtype != self.precision.dtype:
            return residual + self(x)
        total: Tensor = self._binary(x, residual, self.packed, self.bias, "add")
        return total


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


def _by_rows(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """One token's product, as sums that the compiler turns into one pass over the weights."""
    product = (x.float() * weight.float()).sum(dim=-1)
    return (product if bias is None else product + bias.float())[None]
