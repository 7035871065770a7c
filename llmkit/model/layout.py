"""Between the layout of weights in a checkpoint and in the transformer: transposed, stacked, interleaved, by expert.

Everything here works on shapes or whole tensors of one `Transfer`; `to_theirs` undoes `to_ours` to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmkit.model.families.base import Transfer

Shape = tuple[int, ...]


def stored_shapes(transfer: Transfer, shapes: Sequence[Shape]) -> list[Shape]:
    """Shapes of the checkpoint's tensors, given those of the transformer's parameters, both in the transfer's order."""
    if transfer.experts:
        one = stored_shapes(transfer.of_one_expert(), [shape[1:] for shape in shapes])
        return one * transfer.experts
    at = transfer.dimension
    shape = list(shapes[0])
    shape[at] = sum(each[at] for each in shapes) // len(transfer.theirs)
    if transfer.transposed:
        shape[-2:] = shape[:-3:-1]
    return [tuple(shape)] * len(transfer.theirs)


def to_ours(transfer: Transfer, stored: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
    """The transformer's parameters, of `shapes`, from the checkpoint's tensors; views where no copy is needed."""
    if transfer.experts:
        one, count = transfer.of_one_expert(), len(stored) // transfer.experts
        each = [
            to_ours(one, stored[expert * count : (expert + 1) * count], [shape[1:] for shape in shapes])
            for expert in range(transfer.experts)
        ]
        return [torch.stack(parts) for parts in zip(*each, strict=True)]
    at = transfer.dimension
    parts = [part.transpose(-1, -2) for part in stored] if transfer.transposed else list(stored)
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=at)
    sizes = [shape[at] for shape in shapes]
    if transfer.groups == 1:
        return list(whole.split(sizes, dim=at))
    grouped = whole.unflatten(at, (transfer.groups, -1))
    split = grouped.split([size // transfer.groups for size in sizes], dim=at + 1)
    return [part.flatten(at, at + 1) for part in split]


def to_theirs(transfer: Transfer, ours: Sequence[Tensor]) -> list[Tensor]:
    """The checkpoint's tensors, contiguous, from the transformer's parameters."""
    if transfer.experts:
        one = transfer.of_one_expert()
        return [part for expert in range(transfer.experts) for part in to_theirs(one, [each[expert] for each in ours])]
    at = transfer.dimension
    if transfer.groups == 1:
        whole = ours[0] if len(ours) == 1 else torch.cat(list(ours), dim=at)
    else:
        grouped = [part.unflatten(at, (transfer.groups, -1)) for part in ours]
        whole = torch.cat(grouped, dim=at + 1).flatten(at, at + 1)
    parts = whole.chunk(len(transfer.theirs), dim=at)
    return [(part.transpose(-1, -2) if transfer.transposed else part).contiguous() for part in parts]
