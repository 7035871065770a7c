"""Matrices whose parts are on several ranks, for updates that need them whole: Muon's.

Each rank gets some of the matrices whole, works on them, and gives each part back to the rank that has it: the work is
divided among the ranks, and what travels is as much as a gather and its opposite. What comes out depends on the number
of ranks by rounding alone, and on the same number it is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import Placement, Shard

Work = Callable[[Tensor], Tensor]
"""Of whole matrices [..., rows, columns], each by itself."""


class Matrices:
    """How matrices, or stacks of them, of one shape are kept: whole on this rank.

    Shapes: m tensors, each [..., r, c] whole, and on this rank [..., r', c'].
    """

    def apply(self, parts: Sequence[Tensor], work: Work) -> Tensor:
        """This rank's parts, [m, ..., r', c'], of what `work` makes of the whole matrices."""
        return work(torch.stack(list(parts)))

    def row_means(self, squares: Tensor) -> Tensor:
        """Means over whole rows, [m, ..., r'], of [m, ..., r', c']."""
        return squares.mean(dim=-1)

    def norms(self, parts: Tensor) -> Tensor:
        """Frobenius norms of whole matrices, [m, ..., 1, 1], given parts [m, ..., r', c']."""
        norms: Tensor = torch.linalg.matrix_norm(parts, keepdim=True)
        return norms


class SharedMatrices(Matrices):
    """Matrices in parts.

    Args:
        like: a distributed tensor of their shape.
    """

    def __init__(self, like: DTensor) -> None:
        self.mesh, self.placements, self.shape = like.device_mesh, like.placements, like.shape
        self.stride = like.stride()
        last = like.dim() - 1
        cuts = [(dim, _cut(placement)) for dim, placement in enumerate(self.placements)]
        self.across_columns = [dim for dim, cut in cuts if cut == last]
        self.across = [dim for dim, cut in cuts if cut in (last - 1, last)]
        self.by_rows = like.dim() == 2 and len(self.across) == 1 and type(self.placements[self.across[0]]) is Shard
        self.by_rows = self.by_rows and not self.across_columns

    def apply(self, parts: Sequence[Tensor], work: Work) -> Tensor:
        """This rank's parts of what `work` makes of the whole matrices."""
        if not self.across:
            return work(torch.stack(list(parts)))
        return self._divided(parts, work) if self.by_rows else self._gathered(parts, work)

    def row_means(self, squares: Tensor) -> Tensor:
        """Means over whole rows."""
        return self._summed(squares.sum(dim=-1), self.across_columns) / self.shape[-1]

    def norms(self, parts: Tensor) -> Tensor:
        """Frobenius norms of whole matrices."""
        return self._summed(parts.square().sum(dim=(-2, -1), keepdim=True), self.across).sqrt()

    def _summed(self, values: Tensor, dims: Sequence[int]) -> Tensor:
        for dim in dims:
            values = values.contiguous()
            dist.all_reduce(values, group=self.mesh.get_group(dim))
        return values

    def _divided(self, parts: Sequence[Tensor], work: Work) -> Tensor:
        """Matrix i goes whole to rank i mod R of the R that have its rows, and its rows come back from there."""
        group = self.mesh.get_group(self.across[0])
        ranks, (rows, columns) = dist.get_world_size(group), self.shape
        mine, chunk, rounds = parts[0].shape[0], -(-rows // ranks), -(-len(parts) // ranks)
        sent = parts[0].new_zeros(rounds, ranks, chunk, columns)
        sent.view(-1, chunk, columns)[: len(parts), :mine] = torch.stack(list(parts))
        # [from, matrices of this rank, rows of that rank, columns] -> [matrices, rows, columns]
        got = _exchanged(sent.transpose(0, 1), group)
        owned = len(range(dist.get_rank(group), len(parts), ranks))
        whole = got.transpose(0, 1).reshape(rounds, ranks * chunk, columns)[:owned, :rows]
        done = work(whole) if owned else whole
        back = done.new_zeros(rounds, ranks * chunk, columns)
        back[:owned, :rows] = done
        received = _exchanged(back.view(rounds, ranks, chunk, columns).transpose(0, 1), group)
        return received.transpose(0, 1).reshape(-1, chunk, columns)[: len(parts), :mine]

    def _gathered(self, parts: Sequence[Tensor], work: Work) -> Tensor:
        """Every rank works on all matrices."""
        whole = [
            DTensor.from_local(
                part, self.mesh, self.placements, run_check=False, shape=self.shape, stride=self.stride
            ).full_tensor()
            for part in parts
        ]
        shape, offset = compute_local_shape_and_global_offset(self.shape, self.mesh, self.placements)
        window = tuple(slice(begin, begin + size) for begin, size in zip(offset, shape, strict=True))
        return work(torch.stack(whole))[(slice(None), *window)]


def _cut(placement: Placement) -> int | None:
    """The dimension of a tensor that a placement divides; None where it divides none."""
    return None if placement.is_replicate() else int(placement.dim)  # type: ignore[attr-defined]


def _exchanged(given: Tensor, group: dist.ProcessGroup) -> Tensor:
    """What all ranks give to this one: [from, ...], of [to, ...]."""
    given = given.contiguous()
    got = torch.empty_like(given)
    dist.all_to_all_single(got, given, group=group)
    return got


def matrices_like(tensor: Tensor) -> Matrices:
    """How matrices such as this one are kept."""
    return SharedMatrices(tensor) if isinstance(tensor, DTensor) else Matrices()
