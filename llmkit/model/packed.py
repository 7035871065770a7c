"""Tensors that some checkpoints hold in another form than their family's table of weights has: MXFP4, and all experts
in one. They are presented as the table names them, and unpacked as they are read."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from llmkit.model.families.base import Family
from llmkit.model.tensors import StoredTensor

_BLOCKS, _SCALES = "_blocks", "_scales"
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def present(tensors: dict[str, StoredTensor], family: Family, experts: int) -> None:
    """Replace packed tensors by what they hold, under the names of the family's table.

    Args:
        tensors: of a checkpoint, by name.
        family: whose table it is.
        experts: how many experts a layer has; tensors of another number stay as they are.
    """
    for name in [name.removesuffix(_BLOCKS) for name in tensors if name.endswith(_BLOCKS)]:
        blocks, scales = tensors[name + _BLOCKS], tensors.get(name + _SCALES)
        if scales is not None and _is_mxfp4(blocks, scales):
            tensors[name] = _transposed_mxfp4(name, blocks, scales)
            del tensors[name + _BLOCKS], tensors[name + _SCALES]
    for joined, parts in family.joined.items():
        start, end = joined.split("{i}")
        for name in [name for name in tensors if name.startswith(start) and name.endswith(end)]:
            layer = name.removeprefix(start).removesuffix(end)
            if layer.isdecimal():
                _take_apart(tensors, name, [part.replace("{i}", layer) for part in parts], experts)


def _take_apart(tensors: dict[str, StoredTensor], name: str, parts: list[str], experts: int) -> None:
    """Replace a tensor of all experts, [E, parts x rows, columns], by those of each; or give one another name."""
    whole = tensors[name]
    if "{e}" not in parts[0]:
        tensors[parts[0]] = tensors.pop(name)
        return
    if len(whole.shape) != 3 or whole.shape[0] != experts or whole.shape[1] % len(parts):
        return
    rows = whole.shape[1] // len(parts)
    for expert in range(experts):
        for place, part in enumerate(parts):
            named, read = part.format(e=expert), _slice_of(whole, expert, place * rows, rows)
            tensors[named] = StoredTensor(named, (rows, whole.shape[2]), whole.kind, whole.dtype, read)
    del tensors[name]


def _slice_of(whole: StoredTensor, expert: int, first: int, rows: int) -> Callable[[int, int | None], Tensor]:
    def read(start: int, stop: int | None) -> Tensor:
        last = rows if stop is None else min(stop, rows)
        return whole.read(expert, expert + 1)[0, first + start : first + last]

    return read


def _is_mxfp4(blocks: StoredTensor, scales: StoredTensor) -> bool:
    bytes_only = blocks.kind == scales.kind == "U8"
    return bytes_only and len(blocks.shape) == 4 and blocks.shape[3] == 16 and blocks.shape[:3] == scales.shape


def _transposed_mxfp4(name: str, blocks: StoredTensor, scales: StoredTensor) -> StoredTensor:
    """Blocks [E, rows, columns / 32, 16] as [E, columns, rows], the way in which gpt-oss holds plain numbers."""
    experts, rows, groups, _ = blocks.shape

    def read(start: int, stop: int | None) -> Tensor:
        last = experts if stop is None else min(stop, experts)
        # One expert at a time: codes take more memory as indices than as what they stand for.
        values = [
            dequantize_mxfp4(blocks.read(expert, expert + 1)[0], scales.read(expert, expert + 1)[0]).T
            for expert in range(start, last)
        ]
        return torch.stack(values) if values else torch.empty((0, groups * 32, rows), dtype=torch.bfloat16)

    return StoredTensor(name, (experts, groups * 32, rows), "MXFP4", torch.bfloat16, read)


def dequantize_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """Numbers of the microscaling format MXFP4 (Open Compute Project 2023), exact in bf16.

    Args:
        blocks: bytes [..., groups, 16], two E2M1 numbers each, the first in the low bits.
        scales: bytes [..., groups], exponents of two, plus 127; 255 makes a group no number.

    Returns:
        bf16 [..., groups * 32].
    """
    numbers = torch.tensor([*_E2M1, *(-number for number in _E2M1)], dtype=torch.bfloat16)
    codes = torch.arange(256)
    # Both numbers of a byte in one element: half as many lookups.
    pairs = torch.stack((numbers[codes & 15], numbers[codes >> 4]), dim=1).view(torch.int32)[:, 0]
    powers = torch.tensor([*(2.0 ** (exponent - 127) for exponent in range(255)), math.nan], dtype=torch.bfloat16)
    values = pairs.index_select(0, blocks.flatten().to(torch.int32)).view(torch.bfloat16)
    scaled = values.view(*scales.shape, -1) * powers[scales.to(torch.int32)][..., None]
    return scaled.flatten(-2)
