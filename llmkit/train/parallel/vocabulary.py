"""The vocabulary as ranks share it: what of a softmax over all of it each has, and how the parts come together.

Shapes: n tokens, V rows of the vocabulary that this rank has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Vocabulary:
    """The rows of the vocabulary that a rank has.

    Args:
        first: the first of them.
        group: the ranks that have the rest; None where this one has all.
    """

    first: int = 0
    group: dist.ProcessGroup | None = None

    def highest(self, x_nV: Tensor) -> Tensor:
        """The highest of each row over the whole vocabulary, [n, 1]."""
        highest_n1 = x_nV.amax(1, keepdim=True)
        if self.group is not None:
            dist.all_reduce(highest_n1, dist.ReduceOp.MAX, group=self.group)
        return highest_n1

    def wanted(self, x_nV: Tensor, targets_n1: Tensor) -> Tensor:
        """The values at the targets, [n, 1]; zero where another rank has them."""
        if self.group is None:
            return x_nV.gather(1, targets_n1)
        places_n1, absent_n1 = self._places(x_nV, targets_n1)
        return x_nV.gather(1, places_n1).masked_fill_(absent_n1, 0.0)

    def total(self, *parts_n1: Tensor) -> tuple[Tensor, ...]:
        """What ranks have of some sums, added up."""
        if self.group is None:
            return parts_n1
        both = torch.cat(parts_n1, dim=1)
        dist.all_reduce(both, group=self.group)
        return tuple(both.chunk(len(parts_n1), dim=1))

    def subtract_one(self, x_nV: Tensor, targets_n1: Tensor) -> None:
        """Subtract 1 at the targets, in place."""
        if self.group is None:
            x_nV.scatter_(1, targets_n1, x_nV.gather(1, targets_n1) - 1)
        else:
            places_n1, absent_n1 = self._places(x_nV, targets_n1)
            x_nV.scatter_(1, places_n1, x_nV.gather(1, places_n1) - (~absent_n1).to(x_nV.dtype))

    def _places(self, x_nV: Tensor, targets_n1: Tensor) -> tuple[Tensor, Tensor]:
        """The targets' places among this rank's rows, and which are not there (their place is 0)."""
        places_n1 = targets_n1 - self.first
        absent_n1 = (places_n1 < 0) | (places_n1 >= x_nV.shape[1])
        return places_n1.masked_fill(absent_n1, 0), absent_n1


def shared_vocabulary(weight: Tensor) -> Vocabulary:
    """Which rows of an output projection this rank has: all, where it is no distributed tensor."""
    if not isinstance(weight, DTensor):
        return Vocabulary()
    group = weight.device_mesh.get_group()
    return Vocabulary(group.rank() * -(-weight.shape[0] // group.size()), group)


def local_rows(weight: Tensor) -> Tensor:
    """This rank's rows of an output projection, or of its bias."""
    return weight.to_local() if isinstance(weight, DTensor) else weight
