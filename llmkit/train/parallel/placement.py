"""Putting a model where it is trained: on its device, in parts where ranks share it, with its weights drawn there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from llmkit.errors import ConfigError
from llmkit.model.transformer import Transformer
from llmkit.store.stage import Context
from llmkit.train.config import TrainConfig
from llmkit.train.engine import Engine, training_device
from llmkit.train.parallel.config import indivisible
from llmkit.train.parallel.context import share_sequences
from llmkit.train.parallel.data import is_sharded, shard
from llmkit.train.parallel.tensor import share_products
from llmkit.train.parallel.whole import keep_part
from llmkit.train.world import World, open_world

Draw = Callable[[nn.Module, Callable[[Tensor, Tensor], object]], None]
"""Sets every weight of a model, given what sets one: `put(parameter, all of its values)`."""


def training_world(config: TrainConfig, context: Context) -> World:
    """The ranks of a stage's training.

    Raises:
        ConfigError: the settings are for another number of ranks, or the batch cannot be divided among these.
    """
    device = training_device(config, context.place("device")).type
    world = open_world(config.parallel, device, context.place("parallel"))
    for finding in indivisible(config.batch_size, world.data_ranks):
        raise ConfigError(finding.message, where=context.place(finding.key), hint=finding.hint)
    return world


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
    _share(model, world, where)
    shard(model, world, dtype=engine.dtype, reshard=reshard, where=where)
    if draw is not None:
        _make_room(model, engine.device, shared=not is_sharded(world))
        draw(model, keep_part)


def _share(model: nn.Module, world: World, where: str | None) -> None:
    """Have ranks share matrix products and sequences."""
    if world.mesh is None or world.sizes.tensor * world.sizes.context == 1:
        return
    if not isinstance(model, Transformer):
        raise ConfigError(
            "only a language model by itself can be shared, not one with a second model beside it.",
            where=where,
            hint="Set `parallel.tensor` and `parallel.context` to 1.",
        )
    if world.sizes.tensor > 1:
        share_products(model, world.mesh["tensor"], where)
    if world.sizes.context > 1:
        share_sequences(model, world.mesh["context"], where)


def _make_room(model: nn.Module, device: str, *, shared: bool) -> None:
    """Move a model from "meta" to a device, its weights unset.

    Args:
        model: in place.
        device: where to.
        shared: whether shared weights have to be shared anew; FSDP2 does so itself.
    """
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, name))
    model.to_empty(device=device)
    if shared:
        for (owner, name), *others in places.values():
            for module, other in others:
                module._parameters[other] = owner._parameters[name]
