"""silu(gate) x up in bfloat16 on a CPU: what the derivative needs is the two factors alone.

As two tensor operations, silu(gate) would be kept beside them for the backward pass. Here it is computed anew, a few
rows at a time while they are in the second-level cache, which takes no longer than reading it from memory would.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_VALUES = 2**17
"""Worked on at once."""


def fits(gate: Tensor, up: Tensor) -> bool:
    """Whether `gated_silu` computes it; by kinds alone, so that passes with and without gradients give the same bits. A
    compiler fuses the operations, and keeps what pays, by itself."""
    return (
        gate.device.type == "cpu"
        and gate.dtype == up.dtype == torch.bfloat16
        and not any(is_traceable_wrapper_subclass(cast(object, part)) for part in (gate, up))
        and gate.is_contiguous()
        and up.is_contiguous()
        and not torch.compiler.is_compiling()
    )


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) x up, element by element (Shazeer 2020), for contiguous bfloat16 tensors of one shape."""
    mixed: Tensor = _GatedSilu.apply(gate, up)
    return mixed


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        mixed = torch.empty_like(gate)
        for gate_n, up_n, mixed_n in _parts(gate, up, mixed):
            torch.mul(F.silu(gate_n), up_n, out=mixed_n)
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        gate_slope, up_slope = torch.empty_like(gate), torch.empty_like(up)
        for gate_n, up_n, upstream_n, gate_slope_n, up_slope_n in _parts(
            gate, up, upstream.contiguous(), gate_slope, up_slope
        ):
            torch.mul(upstream_n, F.silu(gate_n), out=up_slope_n)
            torch.ops.aten.silu_backward.grad_input(upstream_n * up_n, gate_n, grad_input=gate_slope_n)
        return gate_slope, up_slope


def _parts(*tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    """The same values of each, some at a time, as views."""
    return zip(*(tensor.view(-1).split(_VALUES) for tensor in tensors), strict=True)
