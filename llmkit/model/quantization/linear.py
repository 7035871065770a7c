"""What quantized linear maps have in common: the gradient passes through to their inputs, and their weight has none."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from llmkit.model.layers import Linear, compute_dtype


class QuantizedLinear(Linear):
    """A linear map whose weight is kept in codes, in buffers that move with the module and that training leaves alone.

    Subclasses are made from a dense weight and keep codes and scales. Scales are of the model's dtype and cast with
    it; codes are integers and are not.

    Args:
        outputs, inputs: as of `Linear`.
        bias: [outputs], or None; it stays as it is.

    Attributes:
        codes: whole numbers, laid out as the kind has it.
        along_outputs: names of the buffers, and which of their dimensions runs along the outputs.
    """

    codes: Tensor
    along_outputs: ClassVar[dict[str, int]]

    def __init__(self, outputs: int, inputs: int, bias: nn.Parameter | None) -> None:
        # Not nn.Linear's own beginning, which would make room for a dense weight.
        nn.Module.__init__(self)
        self.out_features, self.in_features = outputs, inputs
        self.register_parameter("bias", bias)
        self.adapter = None

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.codes.device

    def prepare_to_join(self) -> bool:
        """Lay codes out so that those of more outputs may follow; whether that can be."""
        raise NotImplementedError

    def widened(self, outputs: int, bias: nn.Parameter | None) -> Self:
        """A map of so many outputs, laid out as this one, whose buffers are yet to be set."""
        made = copy.copy(self)
        made._buffers, made._parameters = dict(self._buffers), {"bias": bias}
        made.out_features = outputs
        return made

    def multiply(self, x: Tensor) -> Tensor:
        """x W' without the bias, [..., inputs] to [..., outputs], in the dtype of `x` and without gradients."""
        raise NotImplementedError

    def project(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], without the adapter; the gradient reaches `x` and the bias."""
        dtype = compute_dtype(x)
        if x.dtype != dtype:
            x = x.to(dtype)
        tracked = x.requires_grad and torch.is_grad_enabled()
        product: Tensor = _Product.apply(x, self) if tracked else self.multiply(x)
        bias = self.bias
        return product if bias is None else product + bias.to(product.dtype)

    def extra_repr(self) -> str:
        """Shape, for printing."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class _Product(torch.autograd.Function):
    """x W' whose backward pass makes the dense weight for its own time only, instead of keeping it from the forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: QuantizedLinear) -> Tensor:
        """The product; nothing is kept."""
        ctx.linear = linear
        return linear.multiply(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of `x`: grad W."""
        return grad @ ctx.linear.dense_weight().to(grad.dtype), None
