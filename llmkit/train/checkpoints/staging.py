"""Which rank writes which part of a checkpoint's tensors, and copies of these parts that training does not change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.tensor import DTensor

_Part = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Staged:
    """What a rank writes.

    Args:
        owned: the tensors, some parts of which it writes, as training has them; for their names, shapes and division.
        parts: the numbers of this rank's parts.
    """

    owned: Mapping[str, Tensor]
    parts: Mapping[str, Tensor]


def stage(tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None, *, copies: bool) -> Staged:
    """Choose what this rank writes, and copy it to the CPU's memory if it is to be written later.

    Args:
        tensors: by name, the same names on all ranks.
        group: of the ranks; None for one alone.
        copies: without it parts are those of the tensors themselves.
    """
    owned = tensors if group is None else {name: tensors[name] for name in _owned_names(tensors, group)}
    parts = {name: _local(tensor) for name, tensor in owned.items()}
    if copies:
        parts = {name: _copied(part) for name, part in parts.items()}
        if any(part.is_cuda for part in map(_local, owned.values())):
            torch.cuda.synchronize()
    return Staged(owned, parts)


def _local(tensor: Tensor) -> Tensor:
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def _copied(part: Tensor) -> Tensor:
    copy = torch.empty(part.shape, dtype=part.dtype, device="cpu", pin_memory=part.is_cuda)
    return copy.copy_(part, non_blocking=True)


def _owned_names(tensors: Mapping[str, Tensor], group: dist.ProcessGroup) -> list[str]:
    """Names of the tensors whose part on this rank it writes: each part has one owner among the ranks that hold it,
    and all own about as many bytes."""
    items = create_default_local_save_plan(dict(tensors), is_coordinator=False).items
    mine = [(item.index.fqn, tuple(item.index.offset or ()), _bytes(tensors[item.index.fqn])) for item in items]
    ranks: list[list[tuple[str, tuple[int, ...], int]]] = [[] for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(ranks, mine, group=group)
    holders: dict[_Part, list[int]] = {}
    sizes: dict[_Part, int] = {}
    for rank, parts in enumerate(ranks):
        for name, offset, size in parts:
            holders.setdefault((name, offset), []).append(rank)
            sizes[name, offset] = size
    load = [0] * len(ranks)
    owned = []
    for part in sorted(sizes, key=lambda part: (-sizes[part], part)):
        owner = min(holders[part], key=lambda rank: load[rank])
        load[owner] += sizes[part]
        if owner == dist.get_rank(group):
            owned.append(part[0])
    return owned


def _bytes(tensor: Tensor) -> int:
    return _local(tensor).numel() * tensor.dtype.itemsize
