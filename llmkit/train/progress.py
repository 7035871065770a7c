"""What is told of a training: lines of metrics, measures on held-out data, and the summary at the end."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from llmkit.console import format_bytes
from llmkit.store.stage import Context
from llmkit.train.config import TrainConfig
from llmkit.train.engine import Engine
from llmkit.train.guard import Guard
from llmkit.train.metrics import Lines, Window
from llmkit.train.parallel.data import forget_gathered
from llmkit.train.schedule import learning_rate
from llmkit.train.seeding import seed_generators
from llmkit.train.step import StepResult
from llmkit.train.world import ALONE, World

_NO_RESULTS = (
    "lr",
    "tokens",
    "seconds",
    "seconds_left",
    "memory_bytes",
    "skipped_steps",
    "passed_over_steps",
    "rewinds",
)
Validation = Callable[[nn.Module], Mapping[str, float]]


@dataclass
class Totals:
    """Counts since the first step, over all attempts, and the last values of each split by name."""

    tokens: int = 0
    seconds: float = 0.0
    last: dict[str, float] = field(default_factory=dict)


class Recorder:
    """Keeps count of the steps and writes lines of metrics.

    Args:
        config: settings.
        context: the stage.
        engine: whose matrix rate throughput is compared with.
        guard: knows which steps were left out.
        flops_per_token: training FLOPs for each token; None where they are not known.
        world: the ranks; what is told is of all of them, by rank 0.

    Attributes:
        metrics: where lines go; set before the first line is written.
        note: what the progress bar says.
    """

    metrics: Lines

    def __init__(
        self,
        config: TrainConfig,
        context: Context,
        engine: Engine,
        guard: Guard,
        flops_per_token: float | None,
        world: World = ALONE,
    ) -> None:
        self.config, self.context, self.engine, self.guard = config, context, engine, guard
        self.flops_per_token, self.world = flops_per_token, world
        self.totals = Totals()
        self.window = Window()
        self.note = ""

    def count(self, result: StepResult, waited: float, seconds: float) -> None:
        """Take a step's numbers in.

        Args:
            result: of the step.
            waited: seconds that its batches took to come.
            seconds: that the whole step took.
        """
        self.totals.tokens += result.tokens
        if result.updated:
            for output in result.outputs:
                for name, (total, units) in output.metrics.items():
                    self.window.add(name, total, units)
        if not self.world.is_main:
            return
        if result.updated:
            if not any("loss" in output.metrics for output in result.outputs):
                self.window.add("loss", result.loss, result.weight)
            self.window.add("grad_norm", result.norm)
        self.window.add("data_seconds", waited)
        if not result.compiled:
            self.window.add("step_tokens", float(result.tokens))
            self.window.add("step_seconds", seconds)

    def log(self, done: int) -> None:
        """Write a line with the averages since the last one."""
        self.window.merge(self.world)
        averages = self.window.averages()
        step_tokens, step_seconds = averages.pop("step_tokens", 0.0), averages.pop("step_seconds", 0.0)
        values = {
            **averages,
            **self.guard.report(done),
            "lr": learning_rate(done - 1, self.config),
            "tokens": self.totals.tokens,
            "seconds": self.totals.seconds,
            "memory_bytes": self.peak_memory(),
        }
        notes = [f"loss {values['loss']:.4g}" if "loss" in values else "no update", *self._held_out()]
        if step_seconds:
            speed = values["tokens_per_second"] = step_tokens / step_seconds
            values["seconds_left"] = self.totals.seconds / done * (self.config.steps - done)
            notes.append(f"{speed:,.0f} tokens/s")
            if self.flops_per_token is not None:
                values["utilization"] = speed * self.flops_per_token / (self.engine.matrix_rate * self.world.size)
                notes.append(f"{values['utilization']:.0%} of matrix rate")
        self.note = ", ".join([*notes, format_bytes(values["memory_bytes"]), f"lr {values['lr']:.2g}"])
        self._write(done, "train", values)
        self.window = Window()

    def _held_out(self) -> list[str]:
        """The last measure on held-out data, in a few words."""
        bits, loss = (self.totals.last.get(f"validation_{name}") for name in ("bits_per_byte", "loss"))
        if bits is not None:
            return [f"{bits:.4g} bits/byte"]
        return [] if loss is None else [f"validation {loss:.4g}"]

    def peak_memory(self) -> float:
        """Bytes that any rank's device has held at most: of a GPU what torch had given out, else of the process."""
        own = torch.cuda.max_memory_allocated() if self.engine.device == "cuda" else _resident_peak()
        return max(row[0] for row in self.world.gather([float(own)]))

    def evaluate(self, done: int, model: nn.Module, validation: Validation) -> dict[str, float]:
        """Measure the model on held-out data, write a line of it, and return it."""
        seed_generators(self.context.seed, "validation")
        model.eval()
        with torch.no_grad(), self.engine.autocast():
            values = dict(validation(model))
        # Parameters may hold an average now, and what was gathered of it is not to be trained with.
        forget_gathered(model)
        self._write(done, "validation", values)
        return values

    def _write(self, done: int, split: str, values: Mapping[str, float]) -> None:
        self.metrics.write(done, split, values)
        shown = {name: value for name, value in values.items() if name not in _NO_RESULTS}
        self.totals.last |= {f"{split}_{name}": value for name, value in shown.items()}

    def summary(self) -> dict[str, Any]:
        """Flat numbers for the stage's outcome."""
        summary: dict[str, Any] = {
            "steps": self.config.steps,
            **self.totals.last,
            **self.guard.report(self.config.steps),
            "precision": self.engine.precision,
            "tokens": self.totals.tokens,
            "seconds": self.totals.seconds,
            "peak_memory_bytes": self.peak_memory(),
        }
        if self.flops_per_token is not None:
            summary["flops"] = self.flops_per_token * self.totals.tokens
        return summary


def _resident_peak() -> int:
    """Bytes of main memory that the process has held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
