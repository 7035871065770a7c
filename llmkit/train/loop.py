"""The training loop, the one that every stage uses.

    engine: device, threads and precision, as the stage's directory says or measured now
    step 0, or the step, weights, optimizer and source of the newest whole checkpoint
    for each step to come:
        seed every random generator from (seed, step)
        for each micro-batch of source.batches(step):
            sum, weight, metrics = objective.loss(model, micro-batch)
            backward(sum)
        gradient = (sum of gradients) / (sum of weights), clipped; not finite: stop and say so
        optimizers step at the learning rate of the step
        every log_every steps: a line of metrics
        every evaluate_every steps: validation(model)
        now and then, at the end, and when asked to stop: a checkpoint
    the finished model goes to model/

What it computes is a function of settings, seed and inputs alone: killed anywhere and started again it ends with the
same bits. Time decides only when checkpoints are written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmkit.console import Progress, format_seconds, progress, say, warn
from llmkit.errors import Interrupted, LLMKitError
from llmkit.store.files import remove_tree, replace_directory
from llmkit.store.stage import Context
from llmkit.train.blocks import compile_blocks, uncompile
from llmkit.train.checkpoint import Checkpoints
from llmkit.train.config import TrainConfig
from llmkit.train.contract import BatchSource, LossOutput, Objective
from llmkit.train.engine import Engine, prepare_engine
from llmkit.train.metrics import MetricsLog, Window
from llmkit.train.optimizer import build_optimizers, trainable_parameters
from llmkit.train.schedule import learning_rate
from llmkit.train.seeding import seed_generators
from llmkit.train.signals import StopRequest, stop_requests
from llmkit.train.state import load_optimizers, load_weights, optimizer_tensors, split_state, weight_tensors
from llmkit.train.trackers import open_trackers

CHECKPOINT_SECONDS = 300.0

Validation = Callable[[nn.Module], Mapping[str, float]]


class DivergedError(LLMKitError):
    """Loss or gradient is no longer a finite number, or a step had nothing to learn from."""


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
    save: Callable[[Path], None],
    save_checkpoint: Callable[[Path], None] | None = None,
    validation: Validation | None = None,
    flops_per_token: float | None = None,
) -> TrainResult:
    """Train a model, or go on training it, and put the finished one at `context.directory / "model"`.

    Args:
        model: what is trained: its parameters that require a gradient, in float32. It is moved to the device in place.
            Frozen parameters are not saved; the caller makes them again from its inputs.
        objective: what is minimised.
        source: on what.
        config: settings.
        context: the stage; `checkpoints/`, `metrics.jsonl`, `engine.json` and `model/` go to its directory.
        save: writes the model as a Hugging Face directory to a path that does not exist yet; same weights, same bytes.
        save_checkpoint: likewise for the `model/` of a checkpoint, such as the adapter alone; by default as `save`.
        validation: values by name ("loss", ...) of a model in evaluation mode, without gradients.
        flops_per_token: training FLOPs for each token that `LossOutput.tokens` counts, for the share of the device's
            matrix rate that is reported.

    Raises:
        Interrupted: SIGTERM or SIGINT came; a checkpoint has been saved.
        DivergedError: loss or gradient is not finite; the message names the step.
        LLMKitError: a checkpoint cannot be written.
    """
    engine = prepare_engine(config, model, context.directory, context.place("device"))
    model.to(engine.device)
    with engine.active():
        loop = _Loop(
            model=model,
            objective=objective,
            source=source,
            config=config,
            context=context,
            save=save,
            save_checkpoint=save_checkpoint or save,
            validation=validation,
            flops_per_token=flops_per_token,
            engine=engine,
        )
        return loop.run()


@dataclass
class _Totals:
    """Counts since the first step, over all attempts."""

    tokens: int = 0
    seconds: float = 0.0
    last: dict[str, float] = field(default_factory=dict)


class _Loop:
    def __init__(
        self,
        *,
        model: nn.Module,
        objective: Objective,
        source: BatchSource,
        config: TrainConfig,
        context: Context,
        save: Callable[[Path], None],
        save_checkpoint: Callable[[Path], None],
        validation: Validation | None,
        flops_per_token: float | None,
        engine: Engine,
    ) -> None:
        self.model, self.objective, self.source = model, objective, source
        self.config, self.context, self.engine = config, context, engine
        self.save_model, self.save_snapshot = save, save_checkpoint
        self.validation, self.flops_per_token = validation, flops_per_token
        self.parameters = trainable_parameters(model)
        self.optimizers = build_optimizers(model, config.optimizer, engine.dtype)
        self.checkpoints = Checkpoints(context.directory / "checkpoints", config.keep_checkpoints)
        self.totals = _Totals()
        self.window = Window()
        self.start = self._restore()
        self.untested = compile_blocks(model) if config.compile else []
        self.metrics: MetricsLog
        self.note = ""

    def run(self) -> TrainResult:
        """Everything from the step gone on from to the finished model."""
        trackers = open_trackers(self.config, self.context, self.start)
        self.metrics = MetricsLog(self.context.directory, self.start, trackers)
        try:
            with stop_requests() as stop:
                if self.start < self.config.steps:
                    with progress(self.context.name, self.config.steps, self.start) as bar:
                        self._steps(stop, bar)
                self._finish()
                self._leave_if_asked(stop.signal_name, self.config.steps)
        finally:
            self.metrics.close()
        return TrainResult(self.config.steps, self._summary())

    def _steps(self, stop: StopRequest, bar: Progress) -> None:
        steps, saved_at = self.config.steps, time.monotonic()
        for step in range(self.start, steps):
            began = time.monotonic()
            self._step(step)
            done = step + 1
            if done % self.config.log_every == 0 or done == steps:
                self._log(done)
            if done % self.config.evaluation_interval == 0 or done == steps:
                self._evaluate(done)
            self.totals.seconds += time.monotonic() - began
            bar.advance(note=self.note)
            # Read once: a signal that comes from here on is answered after the next step.
            asked = stop.signal_name
            if done == steps or asked or self._checkpoint_is_due(done, saved_at):
                self._save_checkpoint(done)
                saved_at = time.monotonic()
            self._leave_if_asked(asked, done)

    def _leave_if_asked(self, signal_name: str | None, done: int) -> None:
        if signal_name:
            raise Interrupted(
                f"stopped by {signal_name} after step {done:,} of {self.config.steps:,}; a checkpoint is saved, "
                "and the same command goes on from it.",
                signal_name,
            )

    def _checkpoint_is_due(self, done: int, saved_at: float) -> bool:
        if self.config.checkpoint_every is not None:
            return done % self.config.checkpoint_every == 0
        return time.monotonic() - saved_at >= CHECKPOINT_SECONDS

    def _step(self, step: int) -> None:
        """One optimizer step, and its numbers into the window."""
        began, compiles = time.monotonic(), bool(self.untested)
        seed_generators(self.context.seed, "batches", step)
        batches = self.source.batches(step)
        waited = time.monotonic() - began
        outputs = self._gradients(batches, step)
        loss, weight, norm = self._scale_gradients(outputs, step)
        rate = learning_rate(step, self.config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens = sum(output.tokens for output in outputs)
        self.totals.tokens += tokens
        self.window.add("loss", loss, weight)
        self.window.add("grad_norm", norm)
        for output in outputs:
            for name, (total, units) in output.metrics.items():
                self.window.add(name, total, units)
        self.window.add("data_seconds", waited)
        if not compiles:
            self.window.add("step_tokens", float(tokens))
            self.window.add("step_seconds", time.monotonic() - began)

    def _gradients(self, batches: Sequence[Any], step: int) -> list[LossOutput]:
        """Add the gradients of all micro-batches up in the parameters."""
        compiled, self.untested = self.untested, []
        began = time.monotonic()
        try:
            outputs = self._passes(batches, step)
        except Exception as error:
            if not compiled:
                raise
            uncompile(compiled)
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            warn(f"torch.compile does not work here, training goes on without it ({first_line[:200]})")
            self.model.zero_grad(set_to_none=True)
            return self._passes(batches, step)
        if compiled:
            say(f"compiled in {format_seconds(time.monotonic() - began)}")
        return outputs

    def _passes(self, batches: Sequence[Any], step: int) -> list[LossOutput]:
        seed_generators(self.context.seed, "model", step)
        self.model.train()
        return [self._backward(batch) for batch in batches]

    def _backward(self, batch: Any) -> LossOutput:
        with self.engine.autocast():
            output = self.objective.loss(self.model, batch)
        output.sum.backward()
        return output._replace(sum=output.sum.detach())

    def _scale_gradients(self, outputs: Sequence[LossOutput], step: int) -> tuple[float, float, float]:
        """Divide the gradients by the weight and clip them.

        Returns:
            summed loss, weight, and norm of the gradient before clipping.
        """
        gradients = [parameter.grad for _, parameter in self.parameters if parameter.grad is not None]
        weight = float(sum(output.weight for output in outputs))
        if not weight or not gradients:
            raise DivergedError(
                f"step {step + 1:,} has nothing to learn from: no token or example of its batch counts.",
                where=self.context.where,
                hint="Look at the data and its loss masks (`llmkit inspect`).",
            )
        total: Tensor = torch.nn.utils.get_total_norm(gradients) / weight
        norm, loss = torch.stack([total, sum(output.sum.float() for output in outputs)]).tolist()  # type: ignore[list-item]
        if not math.isfinite(norm) or not math.isfinite(loss):
            raise self._diverged(step, loss / weight, norm)
        clip = self.config.clip_norm
        scale = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
        torch._foreach_mul_(gradients, scale / weight)
        return loss, weight, norm

    def _diverged(self, step: int, loss: float, norm: float) -> DivergedError:
        bad = [name for name, p in self.parameters if p.grad is not None and not p.grad.isfinite().all()]
        where = f", first in `{bad[0]}` and in {len(bad):,} of {len(self.parameters):,} parameters" if bad else ""
        return DivergedError(
            f"step {step + 1:,} is not finite: loss {loss:.4g}, gradient norm {norm:.4g}{where}.",
            where=self.context.where,
            hint="Lower `optimizer.lr`, lengthen `schedule.warmup_steps` or set `precision: fp32`. Checkpoints before "
            "this step are untouched.",
        )

    def _log(self, done: int) -> None:
        averages = self.window.averages()
        step_tokens, step_seconds = averages.pop("step_tokens", 0.0), averages.pop("step_seconds", 0.0)
        values = {
            **averages,
            "lr": learning_rate(done - 1, self.config),
            "tokens": self.totals.tokens,
            "seconds": self.totals.seconds,
        }
        self.note = f"loss {values['loss']:.4g}, lr {values['lr']:.2g}"
        if step_seconds:
            speed = values["tokens_per_second"] = step_tokens / step_seconds
            self.note += f", {speed:,.0f} tokens/s"
            if self.flops_per_token is not None:
                values["utilization"] = speed * self.flops_per_token / self.engine.matrix_rate
                self.note += f", {values['utilization']:.0%} of the matrix rate"
        self.metrics.write(done, "train", values)
        self._remember("train", values)
        self.window = Window()

    def _evaluate(self, done: int) -> None:
        if self.validation is None:
            return
        seed_generators(self.context.seed, "validation")
        self.model.eval()
        with torch.no_grad(), self.engine.autocast():
            values = dict(self.validation(self.model))
        self.metrics.write(done, "validation", values)
        self._remember("validation", values)

    def _remember(self, split: str, values: Mapping[str, float]) -> None:
        shown = {name: value for name, value in values.items() if name not in ("lr", "tokens", "seconds")}
        self.totals.last |= {f"{split}_{name}": value for name, value in shown.items()}

    def _save_checkpoint(self, done: int) -> None:
        self.metrics.sync()
        source_tensors, source_values = split_state(self.source.state_dict())
        self.checkpoints.save(
            done,
            self.save_snapshot,
            {
                "weights": weight_tensors(self.model),
                "optimizer": optimizer_tensors(self.parameters, self.optimizers),
                "source": source_tensors,
            },
            {
                "tokens": self.totals.tokens,
                "seconds": self.totals.seconds,
                "last": self.totals.last,
                "window": self.window.totals(),
                "source": source_values,
            },
        )

    def _restore(self) -> int:
        """Load the newest whole checkpoint; returns its step, or 0."""
        found = self.checkpoints.newest()
        if found is None:
            return 0
        load_weights(self.model, found.tensors("weights"))
        load_optimizers(self.parameters, self.optimizers, found.tensors("optimizer"))
        self.source.load_state_dict({**found.state["source"], **found.tensors("source")})
        self.totals = _Totals(found.state["tokens"], found.state["seconds"], dict(found.state["last"]))
        self.window = Window(found.state["window"])
        say(f"{self.context.name}: going on from the checkpoint of step {found.step:,}")
        return found.step

    def _finish(self) -> None:
        """Put the finished model in its place."""
        beside = self.context.directory / ".model.partial"
        place = self.context.directory / "model"
        remove_tree(beside)
        self.save_model(beside)
        replace_directory(beside, place)

    def _summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = {
            "steps": self.config.steps,
            **self.totals.last,
            "precision": self.engine.precision,
            "tokens": self.totals.tokens,
            "seconds": self.totals.seconds,
        }
        if self.flops_per_token is not None:
            summary["flops"] = self.flops_per_token * self.totals.tokens
        return summary
