"""Several documents in one row of tokens, kept apart in attention.

Each document of a batch attends within itself alone, as if it stood in a row of its own. Documents of similar length
are brought together in groups, which are computed by the same kernels as whole rows: no mask over whole rows is made,
and no score between documents is computed.

Shapes: B rows, L tokens of a row, T = B x L, P places in the groups, padding included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SHORTEST = 16
"""Documents up to this length share a group."""
_SIMILAR = 0.75
"""The shortest document of a group, as a share of its longest: what is computed for padding is little."""


@dataclass(frozen=True)
class Group:
    """Documents that are computed together.

    Args:
        first: place of the group's first token among all places.
        count: documents.
        length: tokens of the longest.
        real: bool [count, 1, 1, length], False at padding; None where there is none.
    """

    first: int
    count: int
    length: int
    real: Tensor | None

    def of(self, places: Tensor) -> Tensor:
        """[P, H, D] to the group's [count, length, H, D]."""
        mine = places[self.first : self.first + self.count * self.length]
        return mine.view(self.count, self.length, *places.shape[1:])


@dataclass(frozen=True)
class Documents:
    """Where the documents of a batch stand; made by `documents_of`.

    Attributes:
        positions: int64 [B, L], each token's place in its document.
        ends: int32 [documents + 1], where each begins among all tokens, and the end of the last.
        longest: tokens of the longest.
        groups: documents by similar length.
        order: int64 [P], the token at each place of the groups; at padding some token of the same document.
        places: int64 [T], the place of each token.
        padding: int64, the places that are padding.
    """

    positions: Tensor
    ends: Tensor
    longest: int
    groups: tuple[Group, ...]
    order: Tensor
    places: Tensor
    padding: Tensor

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Documents:
        """The same on a device."""
        if self.order.device == device:
            return self

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        groups = (g if g.real is None else replace(g, real=moved(g.real)) for g in self.groups)
        return Documents(
            moved(self.positions),
            moved(self.ends),
            self.longest,
            tuple(groups),
            moved(self.order),
            moved(self.places),
            moved(self.padding),
        )

    def borders(self, begin: int, end: int) -> NDArray[np.int64]:
        """Where documents begin behind token `begin` and before token `end`, counted from `begin`."""
        starts = self.ends.numpy().astype(np.int64)
        return starts[(starts > begin) & (starts < end)] - begin

    def gather(self, x_TF: Tensor) -> Tensor:
        """Bring tokens to their places: [T, ...] to [P, ...]."""
        gathered: Tensor = _Gather.apply(x_TF, self.order, self.places)
        return gathered

    def scatter(self, x_PF: Tensor) -> Tensor:
        """Bring what stands at the places back to the tokens: [P, ...] to [T, ...]; padding is left out."""
        scattered: Tensor = _Scatter.apply(x_PF, self.order, self.places, self.padding)
        return scattered


class _Gather(torch.autograd.Function):
    """Selects rows; as padding hands no gradient back, the gradient is a selection too."""

    @staticmethod
    def forward(ctx: Any, x_TF: Tensor, order: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x_TF.index_select(0, order)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_PF: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradient_PF.index_select(0, places), None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_PF: Tensor, order: Tensor, places: Tensor, padding: Tensor) -> Tensor:
        ctx.save_for_backward(order, padding)
        return x_PF.index_select(0, places)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_TF: Tensor) -> tuple[Tensor, None, None, None]:
        order, padding = ctx.saved_tensors
        return gradient_TF.index_select(0, order).index_fill_(0, padding, 0.0), None, None, None


def documents_of(rows: int, length: int, borders: NDArray[np.int64]) -> Documents | None:
    """Where documents stand in rows of tokens.

    Args:
        rows, length: the batch's shape.
        borders: where documents begin inside rows, counted over all tokens (row x length + place), in any order; the
            first token of a row always begins one. Padding at the end of a row is to be a document of its own.

    Returns:
        None where each row is one document.
    """
    starts = np.union1d(np.arange(rows, dtype=np.int64) * length, borders)
    if starts.size == rows:
        return None
    assert starts[0] == 0 and starts[-1] < rows * length
    ends = np.append(starts, rows * length)
    lengths = np.diff(ends)
    groups: list[Group] = []
    orders: list[NDArray[np.int64]] = []
    reals: list[NDArray[np.bool_]] = []
    for members in _similar(lengths):
        longest = int(lengths[members[0]])
        offsets = np.arange(longest)
        real = offsets < lengths[members][:, None]
        orders.append((starts[members][:, None] + np.where(real, offsets, 0)).ravel())
        mask = None if real.all() else torch.from_numpy(real)[:, None, None, :]
        groups.append(Group(sum(part.size for part in reals), len(members), longest, mask))
        reals.append(real.ravel())
    order, is_real = np.concatenate(orders), np.concatenate(reals)
    places = np.empty(rows * length, dtype=np.int64)
    places[order[is_real]] = np.flatnonzero(is_real)
    positions = np.arange(rows * length) - np.repeat(starts, lengths)
    return Documents(
        torch.from_numpy(positions.reshape(rows, length)),
        torch.from_numpy(ends.astype(np.int32)),
        int(lengths.max()),
        tuple(groups),
        torch.from_numpy(order),
        torch.from_numpy(places),
        torch.from_numpy(np.flatnonzero(~is_real)),
    )


def _similar(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Documents, the longest first, in groups of similar length."""
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    found, begin = [], 0
    while begin < len(order):
        longest = ordered[begin]
        least = 0 if longest <= _SHORTEST else _SIMILAR * longest
        # Descending, so the members of the group are the first ones.
        end = begin + int((ordered[begin:] >= least).sum())
        found.append(order[begin:end])
        begin = end
    return found
