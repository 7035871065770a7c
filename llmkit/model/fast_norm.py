"""RMS norm of a float32 residual stream that gives its branch bfloat16, on a CPU.

torch has no kernel for it there: its formula runs as a dozen passes over the whole stream, forward and backward. Here a
few rows go through all of it while they are in the second-level cache, and nothing but the stream itself and one number
for each row is kept for the derivative.

Shapes: N rows, W width.
"""

from __future__ import annotations

from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_VALUES = 2**18
"""Worked on at once."""


def fits(norm: nn.Module, x: Tensor, dtype: torch.dtype) -> TypeGuard[nn.RMSNorm]:
    """Whether `fast_rms_norm` gives what `norm(x).to(dtype)` does; by kinds alone, so that passes with and without
    gradients give the same bits. A compiler fuses the formula's passes by itself."""
    return (
        type(norm) is nn.RMSNorm
        and x.device.type == "cpu"
        and (x.dtype, norm.weight.dtype, dtype) == (torch.float32, torch.float32, torch.bfloat16)
        # Distributed tensors and hooked modules take the usual way.
        and not any(is_traceable_wrapper_subclass(cast(object, part)) for part in (x, norm.weight))
        and not (norm._forward_hooks or norm._forward_pre_hooks)
        and not torch.compiler.is_compiling()
    )


def fast_rms_norm(x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019).

    Args:
        x: float32 [..., W].
        weight: float32 [W].
        eps: against division by zero; None: float32's, as for torch's.

    Returns:
        bfloat16, shaped like x.
    """
    normed: Tensor = _RMSNorm.apply(x, weight, torch.finfo(x.dtype).eps if eps is None else eps)
    return normed


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_W: Tensor, eps: float) -> Tensor:
        width = x.shape[-1]
        x_NW = x.reshape(-1, width)
        scale_N1, normed_NW = x.new_empty(len(x_NW), 1), torch.empty(x_NW.shape, dtype=torch.bfloat16)
        for part in _parts(x_NW):
            # As torch's own formula rounds: the same bits.
            squares_nW = x_NW[part].square()
            torch.rsqrt(squares_nW.mean(-1, keepdim=True).add_(eps), out=scale_N1[part])
            normed_NW[part] = torch.mul(x_NW[part], scale_N1[part], out=squares_nW).mul_(weight_W)
        ctx.save_for_backward(x, weight_W, scale_N1)
        return normed_NW.view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_W, scale_N1 = ctx.saved_tensors
        width = x.shape[-1]
        x_NW, upstream_NW = x.reshape(-1, width), upstream.reshape(-1, width)
        slope_NW, weight_slope_W = torch.empty_like(x_NW), torch.zeros_like(weight_W)
        for part in _parts(x_NW):
            slope_nW, scale_n1 = upstream_NW[part].float(), scale_N1[part]
            normed_nW = x_NW[part] * scale_n1
            weight_slope_W += (slope_nW * normed_nW).sum(0)
            slope_nW *= weight_W
            along_n1 = torch.linalg.vecdot(slope_nW, normed_nW)[:, None].div_(-width)
            torch.mul(slope_nW.addcmul_(normed_nW, along_n1), scale_n1, out=slope_NW[part])
        return slope_NW.view(x.shape), weight_slope_W, None


def _parts(x_NW: Tensor) -> list[slice]:
    rows = max(1, _VALUES // x_NW.shape[1])
    return [slice(begin, begin + rows) for begin in range(0, len(x_NW), rows)]
