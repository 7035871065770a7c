"""Linear maps of a model's blocks as 8-bit floating-point products, forward and backward (Micikevicius et al. 2022).

Each product's two operands are scaled by their own largest magnitude at that moment and rounded: inputs and weights to
e4m3 (3 bits of mantissa), gradients to e5m2 (a wider range). The device adds products up in float32 and gives bfloat16.
Weights, their gradients and what the optimizer keeps stay in float32.

Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.model.layers import Linear
from llmkit.train.blocks import repeated_blocks

MULTIPLE = 16
"""Of what the kernels want both widths and the number of tokens to be."""
CAPABILITY = (8, 9)
"""Of the first CUDA devices with such products."""


def use_float8_products(model: nn.Module) -> int:
    """Have the linear maps inside the model's blocks compute in float8, in place; names of parameters stay.

    Maps with adapters, quantized ones, and those with a width that is no multiple of 16 stay as they are, as do
    embeddings, head and norms.

    Returns:
        how many maps compute so.
    """
    maps = [module for block in repeated_blocks(model) for module in block.modules() if _fits(module)]
    for module in maps:
        setattr(module, "project", partial(_project, module))  # noqa: B010
    return len(maps)


def _fits(module: nn.Module) -> TypeGuard[Linear]:
    if type(module) is not Linear or module.adapter is not None:
        return False
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0


def _project(linear: Linear, x: Tensor) -> Tensor:
    """`Linear.project` in float8; a last batch that the kernels cannot take is computed as ever."""
    if x.numel() // linear.in_features % MULTIPLE:
        return F.linear(x, linear.weight, linear.bias)
    mapped: Tensor = _Float8Product.apply(x.flatten(0, -2), linear.weight)
    mapped = mapped.view(*x.shape[:-1], linear.out_features)
    return mapped if linear.bias is None else mapped + linear.bias.to(mapped.dtype)


def _rounded(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The tensor in an 8-bit format, and the float32 number that gives its values back when multiplied."""
    scale = x.detach().abs().amax().float().clamp(min=torch.finfo(torch.float32).tiny) / torch.finfo(dtype).max
    limit = torch.finfo(dtype).max
    return (x.float() / scale).clamp(-limit, limit).to(dtype), scale


def _product(left: Tensor, left_scale: Tensor, right: Tensor, right_scale: Tensor) -> Tensor:
    """left @ right.T for float8 [rows, I] and [columns, I], in bfloat16."""
    return torch._scaled_mm(
        left.contiguous(),
        # The kernels want the right factor's columns in one piece.
        right.contiguous().t(),
        scale_a=left_scale,
        scale_b=right_scale,
        out_dtype=torch.bfloat16,
    )


class _Float8Product(torch.autograd.Function):
    """x @ weight.T, and its two derivatives, each as a product of 8-bit factors."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        x8_NI, x_scale = _rounded(x_NI, torch.float8_e4m3fn)
        weight8_OI, weight_scale = _rounded(weight_OI, torch.float8_e4m3fn)
        ctx.save_for_backward(x8_NI, x_scale, weight8_OI, weight_scale)
        ctx.dtypes = x_NI.dtype, weight_OI.dtype
        return _product(x8_NI, x_scale, weight8_OI, weight_scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream_NO: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x8_NI, x_scale, weight8_OI, weight_scale = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        upstream8_NO, scale = _rounded(upstream_NO, torch.float8_e5m2)
        x_slope = weight_slope = None
        if ctx.needs_input_grad[0]:
            x_slope = _product(upstream8_NO, scale, weight8_OI.t(), weight_scale).to(x_dtype)
        if ctx.needs_input_grad[1]:
            weight_slope = _product(upstream8_NO.t(), scale, x8_NI.t(), x_scale).to(weight_dtype)
        return x_slope, weight_slope


def why_not(device: str) -> str | None:
    """Why a device cannot train in float8, as a clause, or None."""
    if device != "cuda":
        return f"this run is on {device}, which has no such products"
    found = torch.cuda.get_device_capability()
    if found < CAPABILITY:
        return f"{torch.cuda.get_device_name()} has compute capability {found[0]}.{found[1]}, below 8.9"
    return None
