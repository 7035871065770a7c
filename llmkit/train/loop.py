"""The training loop, the one that every stage uses.

    engine: device, threads and precision, as the stage's directory says or measured now
    on many ranks: each has its part of the weights, of each batch, or of both
    step 0, or the step, weights, optimizer and source of the newest whole checkpoint
    for each step to come:
        seed every random generator from (seed, step)
        for each micro-batch of source.batches(step):
            sum, weight, metrics = objective.loss(model, micro-batch)
            backward(sum)
        gradient = (sum of gradients) / (sum of weights), over all ranks, clipped
        not finite, or a spike: no update; too many of them: back to a checkpoint and past their data, or stop
        optimizers step at the learning rate of the step
        every log_every steps: a line of metrics
        every evaluate_every steps: validation(model)
        now and then, at the end, and when asked to stop: a checkpoint
    the finished model goes to model/

What it computes is a function of settings, seed and inputs alone: killed anywhere and started again it ends with the
same bits. Time decides only when checkpoints are written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from llmkit.console import Progress, progress, say
from llmkit.errors import Interrupted
from llmkit.store.files import remove_tree, replace_directory
from llmkit.store.stage import Context
from llmkit.train.checkpoints.checkpoint import open_checkpoints
from llmkit.train.checkpoints.snapshot import SaveModel, Snapshots
from llmkit.train.config import TrainConfig
from llmkit.train.contract import BatchSource, Objective
from llmkit.train.engine import prepare_engine
from llmkit.train.float8 import use_float8_products
from llmkit.train.guard import Guard, RewindError
from llmkit.train.metrics import MetricsLog, NoLines
from llmkit.train.optimizers.averaging import evaluation_weights, with_evaluation_weights
from llmkit.train.optimizers.build import build_optimizers, trainable_parameters
from llmkit.train.optimizers.rounding import narrow_trained_weights
from llmkit.train.parallel.placement import Draw, place, shared_engine
from llmkit.train.parallel.whole import on_main
from llmkit.train.progress import Recorder, Validation
from llmkit.train.seeding import seed_generators
from llmkit.train.signals import ECHO_SECONDS, StopRequest, elected, stop_requests
from llmkit.train.step import DivergedError, Stepper
from llmkit.train.trackers import open_trackers
from llmkit.train.watchdog import watched
from llmkit.train.world import ALONE, World, add_up

__all__ = ["DivergedError", "TrainResult", "Validation", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What came of a training.

    Args:
        steps: optimizer steps done.
        summary: flat numbers for the stage's outcome: `train_*` and `validation_*` values of the last lines, and cost
            (`seconds`, `tokens`, `flops`), added up over interrupted attempts.
    """

    steps: int
    summary: dict[str, Any]


def train(
    *,
    model: nn.Module,
    objective: Objective,
    source: BatchSource,
    config: TrainConfig,
    context: Context,
    save: SaveModel,
    save_checkpoint: SaveModel | None = None,
    validation: Validation | None = None,
    flops_per_token: float | None = None,
    world: World = ALONE,
    draw: Draw | None = None,
) -> TrainResult:
    """Train a model, or go on training it, and put the finished one at `context.directory / "model"`.

    Args:
        model: what is trained: its parameters that require a gradient, in float32. It is moved to the device in place.
            Frozen parameters are not saved; the caller makes them again from its inputs.
        objective: what is minimised.
        source: on what.
        config: settings.
        context: the stage; `checkpoints/`, `metrics.jsonl`, `engine.json` and `model/` go to its directory.
        save: writes the model that it is given, as a Hugging Face directory, to a path that does not exist yet; same
            weights, same bytes. What it is given is not always `model` itself: training goes on while checkpoints are
            written.
        save_checkpoint: likewise for the `model/` of a checkpoint, such as the adapter alone; by default as `save`.
        validation: values by name ("loss", ...) of a model in evaluation mode, without gradients.
        flops_per_token: training FLOPs for each token that `LossOutput.tokens` counts, for the share of the device's
            matrix rate that is reported.
        world: the ranks, all of which call this with their own part of the source.
        draw: sets the weights of a model that is on "meta", once each rank has its part of them.

    Raises:
        Interrupted: SIGTERM or SIGINT came; a checkpoint has been saved.
        DivergedError: loss or gradient is not finite, or spikes, in more steps than `spikes` allows.
        LLMKitError: a checkpoint cannot be written.
    """
    engine = shared_engine(world, lambda: prepare_engine(config, model, context.directory, context.place("device")))
    if engine.precision == "float8":
        say(f"{context.name}: {use_float8_products(model):,} linear maps compute in float8")
    if engine.precision == "bf16-pure":
        narrow_trained_weights(model)
    place(model, world, engine, reshard=config.parallel.reshard, draw=draw, where=context.place("parallel"))
    with engine.active():
        parameters = trainable_parameters(model)
        average = None if config.average is None else config.average.decay
        optimizers = build_optimizers(model, config.optimizer, engine.dtype, seed=context.seed, average=average)
        guard = Guard(config.spikes, context.directory, writes=world.is_main)
        recorder = Recorder(config, context, engine, guard, flops_per_token, world)
        checkpoints = open_checkpoints(config, context, world, measured=validation is not None)
        snapshots = Snapshots(checkpoints, model, parameters, optimizers, source, recorder, save_checkpoint or save)
        loop = _Loop(
            model=model,
            source=source,
            config=config,
            context=context,
            save=with_evaluation_weights(on_main(partial(save, model), model, world), optimizers),
            validation=validation,
            recorder=recorder,
            snapshots=snapshots,
            start=snapshots.restore(context.name) or 0,
            stepper=Stepper(model, objective, parameters, optimizers, config, context, engine, guard, world),
            guard=guard,
            world=world,
        )
        return loop.run()


@dataclass
class _Loop:
    model: nn.Module
    source: BatchSource
    config: TrainConfig
    context: Context
    save: Callable[[Path], None]
    validation: Validation | None
    recorder: Recorder
    snapshots: Snapshots
    start: int
    stepper: Stepper
    guard: Guard
    world: World
    beat: Callable[[str], None] = field(init=False)

    def run(self) -> TrainResult:
        """Everything from the step gone on from to the finished model."""
        seconds, directory = self.config.watchdog, self.context.directory
        echo = 0.0 if self.world.size == 1 else ECHO_SECONDS
        with (
            stop_requests(echo, speaks=self.world.is_main) as stop,
            watched(self.model, directory, seconds, self.world.rank) as self.beat,
        ):
            try:
                while not self._attempt(stop):
                    self.start = self.snapshots.rewind(self.context.name)
            except Exception:
                self.snapshots.checkpoints.let_finish()
                raise
            except BaseException:
                self.snapshots.checkpoints.abandon()
                raise
            self._finish()
            self._leave_if_asked(elected(add_up(self.world.gather(stop.votes()))), self.config.steps)
        return TrainResult(self.config.steps, self.recorder.summary())

    def _attempt(self, stop: StopRequest) -> bool:
        """Train from `start` on to the end; False where bad steps are to be passed over first."""
        self.recorder.metrics = NoLines()
        if self.world.is_main:
            trackers = open_trackers(self.config, self.context, self.start)
            self.recorder.metrics = MetricsLog(self.context.directory, self.start, trackers)
        try:
            if not self.start and self.config.spikes.rewinds:
                self.snapshots.save(0)
            if self.start < self.config.steps:
                with progress(self.context.name, self.config.steps, self.start) as bar:
                    self._steps(stop, bar)
        except RewindError as error:
            first, last = error.passage.first + 1, error.passage.last + 1
            say(f"{self.context.name}: {error}; going back, and past the data of steps {first:,} to {last:,}")
            return False
        finally:
            self.recorder.metrics.close()
        return True

    def _steps(self, stop: StopRequest, bar: Progress) -> None:
        steps, saved_at, recorder = self.config.steps, time.monotonic(), self.recorder
        settings, checkpoints = self.config.checkpoints, self.snapshots.checkpoints
        for step in range(self.start, steps):
            began = time.monotonic()
            done = step + 1
            self.beat(f"step {done}")

            def ballot(done: int = done, saved_at: float = saved_at) -> list[float]:
                # The signal first: one that comes from here on is answered after the next step.
                votes = stop.votes()
                due = settings.is_due(done, time.monotonic() - saved_at)
                return [*votes, float(due), float(checkpoints.failed)]

            asked, due = self._agree(self._step(step, ballot))
            self.beat(f"what follows step {done}")
            if done % self.config.log_every == 0 or done == steps:
                recorder.log(done)
            measures: Mapping[str, float] = {}
            if self.validation is not None and (done % self.config.evaluation_interval == 0 or done == steps):
                with evaluation_weights(self.stepper.optimizers):
                    measures = recorder.evaluate(done, self.model, self.validation)
            recorder.totals.seconds += time.monotonic() - began
            bar.advance(note=recorder.note)
            best = bool(measures) and self.world.any(checkpoints.is_best(measures))
            if done == steps or asked or due or best:
                self.snapshots.save(done, measures, wait=done == steps or bool(asked))
                saved_at = time.monotonic()
            self._leave_if_asked(asked, done)

    def _step(self, step: int, ballot: Callable[[], list[float]]) -> list[float]:
        """Make a step; what all ranks have put into the ballot, added up."""
        began = time.monotonic()
        seed_generators(self.context.seed, "batches", step)
        batches = self.source.batches(step)
        waited = time.monotonic() - began
        if self.guard.passes_over(step):
            return add_up(self.world.gather(ballot()))
        result = self.stepper.run(batches, step, ballot)
        self.recorder.count(result, waited, time.monotonic() - began)
        return result.ballot

    def _agree(self, ballot: list[float]) -> tuple[str | None, bool]:
        """The signal that any rank has had, and whether any rank's clock says that a checkpoint is due.

        Raises:
            LLMKitError: a checkpoint could not be written in the background.
        """
        *votes, clocks, failures = ballot
        if failures:
            self.snapshots.checkpoints.wait()
        return elected(votes), bool(clocks)

    def _leave_if_asked(self, signal_name: str | None, done: int) -> None:
        if signal_name:
            raise Interrupted(
                f"stopped by {signal_name} after step {done:,} of {self.config.steps:,}; a checkpoint is saved, "
                "and the same command goes on from it.",
                signal_name,
            )

    def _finish(self) -> None:
        """Put the finished model in its place."""
        self.beat("the finished model")
        beside = self.context.directory / ".model.partial"
        place = self.context.directory / "model"
        if self.world.is_main:
            remove_tree(beside)
        self.save(beside)
        if self.world.is_main:
            replace_directory(beside, place)
        self.world.barrier()
