"""What settings leave to the machine: the micro-batch that fits its memory, and the blocks that a budget recomputes.

The micro-batch is written down in `engine.json`, so that a resumed run computes alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch
from torch import nn

from llmkit.console import format_bytes, say, warn
from llmkit.errors import LLMKitError
from llmkit.store.files import write_json_atomic
from llmkit.store.stage import Context
from llmkit.train.config import TrainConfig
from llmkit.train.engine import FILE, Engine, prepare_engine, read_engine
from llmkit.train.launch import launched
from llmkit.train.memory.config import PartialCheckpointing
from llmkit.train.memory.machines import Machine, available_memory
from llmkit.train.memory.plan import Planner, Work
from llmkit.train.parallel.placement import shared_engine
from llmkit.train.world import World

Config = TypeVar("Config", bound=TrainConfig)
Result = TypeVar("Result")


def is_settled(config: TrainConfig) -> bool:
    """Whether the settings leave nothing to the machine."""
    setting = config.activation_checkpointing
    return config.micro_batch_size != "auto" and not (
        isinstance(setting, PartialCheckpointing) and setting.budget is not None
    )


def settle(config: Config, work: Work, context: Context, world: World, batch_size: int | None = None) -> Config:
    """The same settings with numbers for an automatic micro-batch and for a budget of activations.

    Args:
        config: settings.
        work: what is trained, with rows as long as they get.
        context: the stage.
        world: the ranks; rank 0 decides.
        batch_size: whose part of each rank the micro-batch is to divide; by default that of the settings.
    """
    if is_settled(config):
        return config
    place = context.place("device")
    engine = shared_engine(world, lambda: prepare_engine(config, work.model, context.directory, place))
    divided = config.model_copy(update={"batch_size": batch_size or config.batch_size})
    rows, blocks = world.share(_settled(divided, work, context, world, engine) if world.is_main else None)
    changes: dict[str, Any] = {"micro_batch_size": rows}
    if isinstance(config.activation_checkpointing, PartialCheckpointing):
        changes["activation_checkpointing"] = PartialCheckpointing(blocks=blocks) if blocks else "none"
    return config.model_copy(update=changes)


def _settled(config: TrainConfig, work: Work, context: Context, world: World, engine: Engine) -> list[int]:
    """Rows of a micro-batch, and how many blocks are recomputed."""
    planner = Planner(config, work, _machine(engine, work.model, world), engine.precision)
    rows = planner.micro_batch()
    if config.micro_batch_size == "auto":
        if engine.micro_batch is None:
            total = format_bytes(sum(planner.parts(rows).values()))
            say(f"{context.name}: micro-batches of {rows} rows, {total} of {format_bytes(planner.machine.memory)}")
            _write(engine, rows, context)
        else:
            rows = engine.micro_batch
    blocks = planner.checkpointing(rows)
    if not isinstance(blocks, int):
        return [rows, 0]
    if not engine.micro_batch:
        say(f"{context.name}: {blocks} of {len(planner.blocks)} blocks are recomputed")
    return [rows, blocks]


def _machine(engine: Engine, model: nn.Module, world: World) -> Machine:
    """This machine with what memory is free now, and what the model has taken of it already."""
    if engine.device == "cuda":
        free = float(torch.cuda.mem_get_info()[0])
    else:
        launch = launched()
        free = available_memory() / (1 if launch is None else launch.local_size)
        free += sum(parameter.nbytes for parameter in model.parameters() if parameter.device.type == "cpu")
    rate = engine.matrix_rate
    return Machine(engine.device, engine.device, rate, rate, free, None, None, world.size, measured=True)


def _write(engine: Engine, rows: int, context: Context) -> None:
    write_json_atomic(context.directory / FILE, asdict(replace(engine, micro_batch=rows)))


def with_fitting_micro_batch(config: TrainConfig, context: Context, world: World, run: Callable[[], Result]) -> Result:
    """Run a training whose micro-batch was chosen; where a GPU has not the memory for it, again with smaller ones.

    Raises:
        LLMKitError: on several ranks, whose others cannot be called back; the next start takes the smaller one.
    """
    while True:
        try:
            return run()
        except torch.OutOfMemoryError:
            engine = read_engine(context.directory)
            if config.micro_batch_size != "auto" or engine is None or not engine.micro_batch or engine.micro_batch == 1:
                raise
            rows = next(rows for rows in range(engine.micro_batch // 2, 0, -1) if engine.micro_batch % rows == 0)
            _write(engine, rows, context)
            if world.size > 1:
                message = f"micro-batches of {engine.micro_batch} rows do not fit the memory; they are {rows} rows now."
                raise LLMKitError(message, where=context.where, hint="Start it again.") from None
        warn(f"{context.name}: the memory is not enough for micro-batches of {engine.micro_batch} rows; now {rows}")
        torch.cuda.empty_cache()
