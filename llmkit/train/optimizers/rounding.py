"""Weights in bfloat16 that lose no small update: stochastic rounding, and Kahan's compensation.

bfloat16 keeps 8 bits: an update below a 500th of a weight is rounded away. Stochastic rounding goes up with the
probability of the remainder, so that sums are right on average (Gupta et al. 2015). Compensation keeps what each
rounding left out in a second number and adds it the next time (Kahan 1965; for training Zamirai et al. 2020); as 16
bits that continue those of the weight it leaves out nothing, and sums are those of float32 (Kalamkar et al. 2019).

The random bits are a hash of key, count and place in the whole tensor: the same on every device, and however a tensor
is cut into parts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llmkit.train.seeding import derive_seed

_LOW16, _HIGH16 = 0xFFFF, -0x10000


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank has, sharing its memory: the tensor itself, where it is not distributed."""
    if isinstance(tensor, DTensor):
        part: Tensor = tensor.to_local()
        return part
    return tensor


def places(tensor: Tensor) -> Tensor:
    """int32 indices of this rank's elements in the whole tensor laid out row by row; shape of the local part."""
    if not isinstance(tensor, DTensor):
        return torch.arange(tensor.numel(), dtype=torch.int32, device=tensor.device).view(tensor.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    part = local(tensor)
    found = torch.zeros((), dtype=torch.int64, device=part.device)
    stride = 1
    for dim in reversed(range(tensor.dim())):
        steps = torch.arange(offsets[dim], offsets[dim] + part.shape[dim], device=part.device) * stride
        found = found + steps.view(-1, *[1] * (tensor.dim() - dim - 1))
        stride *= tensor.shape[dim]
    return found.to(torch.int32)


def random_bits(places: Tensor, key: str, seed: int, count: Tensor) -> Tensor:
    """16 random bits for each place, int32 from 0 to 65535.

    Args:
        places: int32, of any shape.
        key: name of the stream.
        seed: of the run.
        count: int64 scalar on the same device; each count has bits of its own.
    """
    number = derive_seed(seed, "rounding", key)
    low, high = (_signed(number & 0xFFFFFFFF), _signed(number >> 31 & 0xFFFFFFFF))
    step = count.to(torch.int32)
    x = places * _signed(0x9E3779B1)
    x ^= _mix(step * _signed(0x85EBCA6B) + low)
    x ^= (x >> 16) & _LOW16
    x *= _signed(0x7FEB352D)
    x ^= _mix(step * _signed(0xC2B2AE35) + high)
    x ^= (x >> 15) & 0x1FFFF
    x *= _signed(0x846CA68B)
    return (x >> 16) & _LOW16


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers in which each bit depends on all (C. Wellons' `lowbias32`)."""
    x = (x ^ ((x >> 16) & _LOW16)) * _signed(0x7FEB352D)
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _signed(0x846CA68B)
    return x ^ ((x >> 16) & _LOW16)


def _signed(word: int) -> int:
    """A 32-bit word as the int32 of the same bits."""
    return word - (1 << 32) if word >= 1 << 31 else word


def round_stochastically(values: Tensor, bits: Tensor) -> Tensor:
    """float32 to bfloat16: to one of the two neighbours, the nearer one more likely, so that the mean is the value.

    Args:
        values: float32.
        bits: uniform integers from 0 to 65535, int32, of the same shape.
    """
    raised = values.view(torch.int32) + bits
    raised &= _HIGH16
    return raised.view(torch.float32).to(torch.bfloat16)


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """float32 as the nearest bfloat16, and what is left as int16: the bits that come after it."""
    bits = values.view(torch.int32)
    high = (bits + 0x8000) & _HIGH16
    return high.view(torch.float32).to(torch.bfloat16), (bits - high).to(torch.int16)


def join_(values: Tensor, rest: Tensor) -> None:
    """Add to float32 values that were bfloat16 what `split` left of them, in place."""
    bits = values.view(torch.int32)
    bits += rest


def narrow_trained_weights(model: nn.Module) -> None:
    """Turn the parameters that are trained into bfloat16, in place; shared ones stay shared."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
