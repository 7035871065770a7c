"""What training takes on each device of a mesh, whether it fits there, and what to change where it does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn

from llmkit.store.stage import Plan
from llmkit.train.blocks import repeated_blocks
from llmkit.train.config import TrainConfig
from llmkit.train.contract import Objective
from llmkit.train.memory.config import PartialCheckpointing, size_in_bytes
from llmkit.train.memory.machines import Machine
from llmkit.train.memory.simulate import CostByRows, StepCost, UpdateCost, simulate_step, simulate_update

USABLE = 0.92
"""Share of a device's memory that plans fill: the rest is the driver's, and lost between blocks of memory."""
TOKENS_SIMULATED = 1024
"""Tokens of the smaller of two micro-batches that are simulated; larger ones follow from them."""


@dataclass(frozen=True)
class Work:
    """What is trained, as shapes.

    Args:
        model: on any device; its numbers are not looked at.
        objective: what is minimised.
        batch: a micro-batch of so many rows of so many tokens; only its shapes are looked at.
        length: tokens of a row.
    """

    model: nn.Module
    objective: Objective
    batch: Callable[[int, int], Any]
    length: int


class Planner:
    """Reckons the memory of a training on a machine.

    Args:
        config: settings.
        work: what is trained.
        machine: what on.
        precision: of the training; by default what the settings come to on the machine.

    Raises:
        ConfigError: the settings are for another number of devices.
    """

    def __init__(self, config: TrainConfig, work: Work, machine: Machine, precision: str | None = None) -> None:
        self.config, self.work, self.machine = config, work, machine
        self.precision = precision or machine.precision(config.precision)
        self.sizes = config.parallel.sizes(machine.count)
        self.rows = max(1, config.batch_size // self.sizes.data)
        self.length = max(1, work.length // self.sizes.context)
        self.blocks = repeated_blocks(work.model)
        self._costs: dict[tuple[str | int, bool], CostByRows] = {}
        self._update: Callable[[], UpdateCost] = cache(
            lambda: simulate_update(work.model, config, self.precision, device=machine.device)
        )

    @property
    def room(self) -> float:
        """Bytes that training may take on each device."""
        return USABLE * self.machine.memory

    def micro_batch(self) -> int:
        """Rows of a micro-batch as the settings say; for `auto` the most that fit, or one."""
        if self.config.micro_batch_size == "auto":
            return self.largest_micro_batch() or 1
        return min(self.config.micro_batch, self.rows)

    def largest_micro_batch(self) -> int | None:
        """The largest divisor of a rank's rows that fits; None where not even one row does."""
        divisors = (rows for rows in range(self.rows, 0, -1) if self.rows % rows == 0)
        return next((rows for rows in divisors if self.fits(rows)), None)

    def fits(self, rows: int) -> bool:
        """Whether micro-batches of so many rows do."""
        return sum(self.parts(rows).values()) <= self.room

    def checkpointing(self, rows: int) -> str | int:
        """`none`, `selective`, `full`, or how many blocks are recomputed to stay within the budget."""
        setting = self.config.activation_checkpointing
        if not isinstance(setting, PartialCheckpointing):
            return setting
        if setting.blocks is not None:
            return min(setting.blocks, len(self.blocks))
        most = self.budget(rows)
        kept, saved = (self._cost(count, rows).activations for count in (0, 1))
        if kept <= most:
            return 0
        blocks = math.ceil((kept - most) / max(1, kept - saved))
        while blocks < len(self.blocks) and self._cost(blocks, rows).activations > most:
            blocks += 1
        return min(blocks, len(self.blocks))

    def budget(self, rows: int) -> float:
        """Bytes that the activations of so many rows may take."""
        setting = self.config.activation_checkpointing
        assert isinstance(setting, PartialCheckpointing)
        assert setting.budget is not None
        if isinstance(setting.budget, str):
            return size_in_bytes(setting.budget)
        return setting.budget if setting.budget > 1 else setting.budget * self._cost(0, rows).activations

    def cost(self, rows: int) -> StepCost:
        """Cost of a step on a device that has the whole model."""
        return self._cost(self.checkpointing(rows), rows)

    def _cost(self, checkpointing: str | int, rows: int) -> StepCost:
        return self._by_rows(checkpointing, rows).at(rows)

    def _by_rows(self, checkpointing: str | int, rows: int) -> CostByRows:
        key = (checkpointing or "none", self.rows > rows)
        if key not in self._costs:
            setting = key[0] if isinstance(key[0], str) else PartialCheckpointing(blocks=key[0])
            config = self.config.model_copy(update={"activation_checkpointing": setting})

            def run(rows: int) -> StepCost:
                return simulate_step(
                    self.work.model, self.work.objective, self.work.batch(rows, self.length), config, self.precision,
                    self._update(), accumulates=key[1], device=self.machine.device,
                )  # fmt: skip

            self._costs[key] = CostByRows(run, max(1, TOKENS_SIMULATED // self.length))
        return self._costs[key]

    def parts(self, rows: int) -> dict[str, int]:
        """Bytes on each device by part, at the moment of the highest use."""
        cost, sizes = self.cost(rows), self.sizes
        if self.machine.device != "cpu" and self.config.optimizer.offload:
            cost = replace(cost, optimizer=0)
        if sizes.ranks == 1:
            return cost.parts()
        if self._is_sharded:
            return self._sharded_parts(cost, rows)
        # DDP lays all gradients out before the first backward pass.
        cost = replace(cost, early_gradients=cost.gradients)
        return {name: size // sizes.tensor for name, size in cost.parts().items()}

    @property
    def _is_sharded(self) -> bool:
        sizes = self.sizes
        return sizes.shard > 1 or (sizes.tensor > 1 and sizes.replicate * sizes.context > 1)

    def _sharded_parts(self, cost: StepCost, rows: int) -> dict[str, int]:
        """The same under FSDP2: parts of weights, and those that are gathered for a while."""
        tensor, parts = self.sizes.tensor, self.sizes.shard * self.sizes.context * self.sizes.tensor
        # Copies of weights in lower precision, which do not grow with the rows, are those that are gathered.
        activations = self._by_rows(self.checkpointing(rows), rows).growing_activations(rows) // tensor
        # Gradients are divided in the last micro-batch alone.
        gradients = cost.gradients // (tensor if self.rows > rows else parts)
        found = {
            "weights": cost.weights // parts,
            "optimizer": cost.optimizer // parts,
            "gradients": gradients,
            "activations": activations,
            "gathered weights": self._gathered() // tensor,
        }
        if cost.work // parts > activations + found["gathered weights"]:
            found = {**found, "update": cost.work // parts, "activations": 0, "gathered weights": 0}
        return found

    def _gathered(self) -> int:
        """Bytes of whole weights that are there at once: a block, the next one and gradients of one, and all else."""
        inside = [sum(parameter.numel() for parameter in block.parameters()) for block in self.blocks]
        outside = sum(parameter.numel() for parameter in self.work.model.parameters()) - sum(inside)
        width, largest = 4 if self.precision == "fp32" else 2, max(inside, default=0)
        # Outside blocks weights and their gradients are gathered in float32.
        whole = 2 * 4 * outside
        if self.config.parallel.reshard:
            return whole + (3 * width + 4) * largest
        return whole + width * sum(inside) + (width + 4) * largest

    def plan(self, parameters: int, steps: int | None, tokens: int | None, flops_per_token: float) -> Plan:
        """The whole plan.

        Args:
            parameters: that are trained.
            steps, tokens: of training; None where they are not known.
            flops_per_token: of the model, in training.
        """
        rows = self.micro_batch()
        return Plan(
            parameters,
            tokens,
            None if tokens is None else flops_per_token * tokens,
            self.parts(rows),
            list(self._notes(rows)),
            precision=self.precision,
            micro_batch=rows,
            extra_flops=self._extra_flops(rows, steps or 0),
            fits=self.fits(rows),
        )

    def _extra_flops(self, rows: int, steps: int) -> dict[str, float]:
        """What is computed on top of the model's forward and backward passes."""
        cost = self.cost(rows)
        extra = {"optimizer": float(cost.update_flops) * steps * self.sizes.data}
        if self.config.activation_checkpointing != "none":
            passes = steps * self.sizes.data * self.sizes.context * (self.rows / rows)
            extra["recomputation"] = (cost.pass_flops - self._cost("none", rows).pass_flops) * passes
        return {name: value for name, value in extra.items() if value}

    def _notes(self, rows: int) -> Iterator[str]:
        """What a person should know: what is chosen, and what to change where it does not fit."""
        gib = f"{sum(self.parts(rows).values()) / 2**30:,.1f} of {self.machine.memory / 2**30:,.1f} GiB"
        setting = self.config.activation_checkpointing
        if isinstance(setting, PartialCheckpointing):
            yield f"{self.checkpointing(rows)} of {len(self.blocks)} blocks are recomputed."
        if self.config.optimizer.offload and self.machine.device != "cpu":
            yield "the optimizer's state is in the memory of the CPU."
        if self.fits(rows):
            if self.config.micro_batch_size == "auto":
                yield f"micro-batches of {rows} rows are the largest that fit ({gib})."
            return
        yield f"it does not fit: {gib} of each device. {self._remedy(rows)}"

    def _remedy(self, rows: int) -> str:
        """What to change for the training to fit."""
        smaller = self.largest_micro_batch()
        if smaller is not None and smaller < rows:
            return f"With `micro_batch_size: {smaller}` it does."
        frugal = self.altered(self.machine.count, activation_checkpointing="full", micro_batch_size=None)
        smaller = frugal.largest_micro_batch()
        if smaller is not None:
            return f"With `activation_checkpointing: full` and `micro_batch_size: {smaller}` it does."
        sizes, parallel = self.sizes, self.config.parallel
        for shard in (2, 4, 8, 16, 32, 64, 128, 256, 512):
            if shard <= sizes.shard or self.config.batch_size % shard:
                continue
            count = shard * sizes.context * sizes.tensor
            mesh = parallel.model_copy(update={"shard": shard, "replicate": "auto"})
            if frugal.altered(count, parallel=mesh).fits(1):
                wider = f"on {count} devices with `parallel: {{shard: {shard}}}`"
                return f"With `activation_checkpointing: full` and `micro_batch_size: 1` it does {wider}."
        return "Take a smaller model, shorter sequences, or devices with more memory."

    def altered(self, count: int, **changes: Any) -> Planner:
        """A planner for other settings of what has been simulated already, on so many devices."""
        config, machine = self.config.model_copy(update=changes), replace(self.machine, count=count)
        found = Planner(config, self.work, machine, self.precision)
        found._costs, found._update = self._costs, self._update
        return found
