"""What ranks of a group exchange in the middle of a pass, with what it means for the gradient.

Whether a gradient is summed on its way back follows from what ranks do with a value: where each goes on with it in its
own way (other features, other queries) their gradients are parts of a sum, where all do the same they are equal.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup

# Their names up to torch 2.12 are deprecated in 2.13.
_all_gather_flat = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_flat = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def all_gather(x: Tensor, dim: int, group: Group) -> Tensor:
    """The parts of all ranks, of equal shapes, behind one another along a dimension; without gradient."""
    front = x.movedim(dim, 0).contiguous()
    whole = front.new_empty((front.shape[0] * group.size(), *front.shape[1:]))
    _all_gather_flat(whole, front, group=group)
    return whole.movedim(0, dim).contiguous()


def reduce_scatter(x: Tensor, dim: int, group: Group) -> Tensor:
    """This rank's part, along a dimension, of the sum over ranks; without gradient."""
    front = x.movedim(dim, 0).contiguous()
    part = front.new_empty((front.shape[0] // group.size(), *front.shape[1:]))
    _reduce_scatter_flat(part, front, group=group)
    return part.movedim(0, dim).contiguous()


def all_reduce(x: Tensor, group: Group) -> Tensor:
    """The sum over ranks; without gradient."""
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return all_gather(x, dim, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return reduce_scatter(gradient, ctx.dim, ctx.group), None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return reduce_scatter(x, dim, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return all_gather(gradient, ctx.dim, ctx.group), None, None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce(gradient, ctx.group), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return all_reduce(x, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce(gradient, ctx.group), None


class _GatherForAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return all_gather(x, dim, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.chunk(ctx.group.size(), ctx.dim)[ctx.group.rank()], None, None


def gathered(x: Tensor, dim: int, group: Group) -> Tensor:
    """The whole of what ranks have parts of, for each to go on with in its own way: gradients are summed."""
    whole: Tensor = _Gather.apply(x, dim, group)
    return whole


def gathered_for_all(x: Tensor, dim: int, group: Group) -> Tensor:
    """The whole of what ranks have parts of, for all to go on with alike: each keeps its part of the gradient."""
    whole: Tensor = _GatherForAll.apply(x, dim, group)
    return whole


def scattered(x: Tensor, dim: int, group: Group) -> Tensor:
    """This rank's part of the sum over ranks."""
    part: Tensor = _Scatter.apply(x, dim, group)
    return part


def shared(x: Tensor, group: Group) -> Tensor:
    """What all ranks have alike and each uses in its own way: gradients are summed."""
    same: Tensor = _Shared.apply(x, group)
    return same


def summed(x: Tensor, group: Group) -> Tensor:
    """The sum over ranks, for each to go on with in its own way: gradients are summed too."""
    total: Tensor = _Sum.apply(x, group)
    return total
