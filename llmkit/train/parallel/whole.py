"""Whole weights of a model whose ranks hold parts: for files that hold a model, and drawn or read part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from llmkit.train.world import World


def full_tensors(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Distributed tensors put together on rank 0, one after the other; to call on all ranks.

    Args:
        tensors: the same names on all ranks, in the same order.
        world: the ranks.

    Returns:
        by name, whole: what was distributed on the CPU, the rest as it is. On other ranks nothing.
    """
    found = {}
    for name, tensor in tensors.items():
        whole = tensor
        if isinstance(tensor, DTensor):
            gathered: Tensor = tensor.full_tensor().detach()
            whole = gathered.cpu() if world.is_main else gathered
        if world.is_main:
            found[name] = whole
    return found


@contextmanager
def whole_model(model: nn.Module, world: World) -> Iterator[bool]:
    """Within this context the model has its weights whole on rank 0, to be written; to enter on all ranks.

    Yields:
        whether this is rank 0. On the others the model is left as it is.
    """
    parts = {name: parameter for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)}
    wholes = full_tensors(parts, world)
    by_part = {
        id(parts[name]): nn.Parameter(whole, requires_grad=parts[name].requires_grad) for name, whole in wholes.items()
    }
    before = []
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in by_part:
                before.append((module, name, parameter))
    try:
        for module, name, parameter in before:
            module._parameters[name] = by_part[id(parameter)]
        yield world.is_main
    finally:
        for module, name, parameter in before:
            module._parameters[name] = parameter


def on_main(save: Callable[[Path], None], model: nn.Module, world: World) -> Callable[[Path], None]:
    """A function that writes the whole model on rank 0; to call on all ranks."""

    def write(path: Path) -> None:
        with whole_model(model, world) as writes:
            if writes:
                save(path)

    return write


@torch.no_grad()
def keep_part(target: Tensor, whole: Tensor) -> None:
    """Set a tensor, or the part of it that this rank has, from all of its values; no rank is asked.

    Args:
        target: whole or distributed, of any data type, on any device.
        whole: of the whole tensor's shape.
    """
    if not isinstance(target, DTensor):
        target.copy_(whole)
        return
    shape, offset = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
    window = tuple(slice(begin, begin + size) for begin, size in zip(offset, shape, strict=True))
    target.to_local().copy_(whole[window])
