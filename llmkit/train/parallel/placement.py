"""Putting a model where it is trained: on its device, in parts where ranks share it, with its weights drawn there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from llmkit.train.engine import Engine
from llmkit.train.parallel.data import shard
from llmkit.train.parallel.whole import keep_part
from llmkit.train.world import World

Draw = Callable[[nn.Module, Callable[[Tensor, Tensor], None]], None]
"""Sets every weight of a model, given what sets one: `put(parameter, all of its values)`."""


def shared_engine(world: World, prepare: Callable[[], Engine]) -> Engine:
    """The engine that rank 0 prepares, on every rank: one choice of precision. Threads are each rank's own share."""
    if world.mesh is None:
        return prepare()
    stated = world.share(asdict(prepare()) if world.is_main else None)
    return replace(Engine(**stated), threads=torch.get_num_threads())


def place(
    model: nn.Module, world: World, engine: Engine, *, reshard: bool, draw: Draw | None, where: str | None = None
) -> None:
    """Put a model on its device in place, or the part of it that this rank has.

    A model on "meta" has no weights yet: each rank makes room for its part and has each weight drawn, of which it keeps
    that part. So they are the same on every mesh, and no rank ever has more than one whole weight.

    Args:
        model: with all its weights, or on "meta".
        world: the ranks.
        engine: device and precision.
        reshard: see `ParallelConfig`.
        draw: sets the weights of a model on "meta".
        where: place of the settings, for messages.
    """
    if draw is None:
        model.to(engine.device)
    shard(model, world, dtype=engine.dtype, reshard=reshard, where=where)
    if draw is not None:
        model.to_empty(device=engine.device)
        draw(model, keep_part)
