"""The norm of a gradient whose tensors are whole on every rank, or in parts on several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from llmkit.train.world import World


def counted_square(gradients: Sequence[Tensor], world: World) -> float:
    """This rank's share of the square of the gradient's norm; the shares of all ranks add up to the whole.

    What several ranks hold alike is counted by the first of them alone.

    Args:
        gradients: whole tensors that are the same on all ranks, or distributed ones, on any parts of the mesh.
        world: the ranks.
    """
    counted = [_part(gradient) for gradient in gradients if _counts(gradient, world)]
    if not counted:
        return 0.0
    norms = torch.stack(torch._foreach_norm(counted))
    return float(norms.double().square().sum())


def _part(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _counts(gradient: Tensor, world: World) -> bool:
    if not isinstance(gradient, DTensor):
        return world.is_main
    names, coordinate = gradient.device_mesh.mesh_dim_names, gradient.device_mesh.get_coordinate()
    assert names is not None
    assert coordinate is not None
    divided: set[str] = set()
    for name, place, placement in zip(names, coordinate, gradient.placements, strict=True):
        assert not placement.is_partial(), "a gradient is summed before its norm is taken"
        if placement.is_replicate() and place:
            return False
        # A flattened dimension is named after those that it is made of.
        divided.update(name.split("_"))
    return all(place == 0 for name, place in world.place.items() if name not in divided)
