"""One optimizer step: the passes over its micro-batches, the gradient's scale and norm, the update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmkit.console import format_seconds, say, warn
from llmkit.errors import LLMKitError
from llmkit.model.compiled import warn_uncompiled
from llmkit.store.stage import Context
from llmkit.train.blocks import compile_blocks, uncompile
from llmkit.train.config import TrainConfig
from llmkit.train.contract import LossOutput, Objective
from llmkit.train.engine import Engine
from llmkit.train.guard import Guard, Passage, RewindError
from llmkit.train.memory.recompute import recompute_activations
from llmkit.train.optimizers.build import Named, set_learning_rate
from llmkit.train.optimizers.rounding import local
from llmkit.train.parallel.data import make_passes
from llmkit.train.parallel.gradients import counted_square
from llmkit.train.schedule import learning_rate
from llmkit.train.seeding import seed_generators
from llmkit.train.world import ALONE, World, add_up


class DivergedError(LLMKitError):
    """Loss or gradient is no longer a finite number, or a step had nothing to learn from."""


@dataclass(frozen=True)
class StepResult:
    """What came of a step.

    Args:
        loss: summed over the step.
        weight: units that it was summed over.
        tokens: that went through the model.
        norm: of the gradient, before clipping.
        outputs: of this rank's micro-batches; everything else is of all ranks.
        compiled: whether compilation took part of the time.
        updated: whether the weights were updated; not after a bad step.
        ballot: what all ranks have put into it, added up.
    """

    loss: float
    weight: float
    tokens: int
    norm: float
    outputs: Sequence[LossOutput]
    compiled: bool
    updated: bool
    ballot: list[float]


class _Sums(NamedTuple):
    """Loss, weight and tokens of all ranks, the norm of the gradient of loss by weight, and the ballot added up."""

    loss: float
    weight: float
    tokens: int
    norm: float
    ballot: list[float]


class Stepper:
    """Makes optimizer steps.

    Args:
        model: what is trained, on its device.
        objective: what is minimised.
        parameters: the trained ones.
        optimizers: of these.
        config: settings.
        context: the stage.
        engine: what is computed on, and how.
        guard: judges each step before its update.
        world: the ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        parameters: Named,
        optimizers: Sequence[Optimizer],
        config: TrainConfig,
        context: Context,
        engine: Engine,
        guard: Guard,
        world: World = ALONE,
    ) -> None:
        self.model, self.world = model, world
        self.parameters, self.optimizers = parameters, optimizers
        self.config, self.context, self.engine = config, context, engine
        self.guard = guard
        recompute_activations(model, config)
        self._untested = compile_blocks(model) if config.compile else []
        self._forward = make_passes(model, objective, world)

    def run(self, batches: Sequence[Any], step: int, ballot: Callable[[], list[float]]) -> StepResult:
        """Make a step from its micro-batches.

        Args:
            batches: of this rank.
            step: counted from 0.
            ballot: numbers to add up over the ranks; they go with those of the step, which must be anyway.

        Raises:
            RewindError: bad steps do not end, and what is to be passed over has been recorded; nothing was updated.
            DivergedError: the same, and there is no going back any more; or nothing is to be learned from.
        """
        compiled = bool(self._untested)
        outputs = self._gradients(batches, step)
        sums = self._scale_gradients(outputs, step, ballot)
        updated = self._passes_judgement(step, sums.loss / sums.weight, sums.norm)
        if updated:
            self._update(step)
        else:
            self.model.zero_grad(set_to_none=True)
        loss, weight, tokens, norm, counted = sums
        return StepResult(loss, weight, tokens, norm, outputs, compiled, updated, counted)

    def _passes_judgement(self, step: int, loss: float, norm: float) -> bool:
        verdict = self.guard.judge(step, loss, norm)
        if verdict.action == "skip":
            warn(f"step {step + 1:,}: {verdict.reason}; its update is left out")
        elif verdict.action == "rewind":
            passage = Passage(verdict.first, step, verdict.reason)
            self.guard.record(passage)
            self.model.zero_grad(set_to_none=True)
            raise RewindError(passage)
        elif verdict.action == "stop":
            raise self._diverged(step, loss, norm, verdict.reason)
        return verdict.action == "update"

    def _update(self, step: int) -> None:
        set_learning_rate(self.optimizers, learning_rate(step, self.config))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _gradients(self, batches: Sequence[Any], step: int) -> list[LossOutput]:
        """Add the gradients of all micro-batches up in the parameters."""
        compiled, self._untested = self._untested, []
        began = time.monotonic()
        try:
            outputs = self._passes(batches, step)
        except Exception as error:
            if not compiled:
                raise
            uncompile(compiled)
            warn_uncompiled(error, "training")
            self.model.zero_grad(set_to_none=True)
            return self._passes(batches, step)
        if compiled:
            say(f"compiled in {format_seconds(time.monotonic() - began)}")
        return outputs

    def _passes(self, batches: Sequence[Any], step: int) -> list[LossOutput]:
        seed_generators(self.context.seed, "model", step, *self.world.stream)
        self.model.train()
        outputs = []
        for number, batch in enumerate(batches):
            with self._forward.micro_batch(last=number == len(batches) - 1):
                outputs.append(self._backward(batch))
        return outputs

    def _backward(self, batch: Any) -> LossOutput:
        with self.engine.autocast():
            output = self._forward.loss(batch)
        output.sum.backward()
        return output._replace(sum=output.sum.detach())

    def _scale_gradients(self, outputs: Sequence[LossOutput], step: int, ballot: Callable[[], list[float]]) -> _Sums:
        """Divide the gradients by the weight and clip them."""
        gradients = [parameter.grad for _, parameter in self.parameters if parameter.grad is not None]
        sums = self._sums(outputs, gradients, ballot())
        if not sums.weight or not gradients:
            raise DivergedError(
                f"step {step + 1:,} has nothing to learn from: no token or example of its batch counts.",
                where=self.context.where,
                hint="Look at the data and its loss masks (`llmkit inspect`).",
            )
        clip = self.config.clip_norm
        scale = 1.0 if clip is None else min(1.0, clip / (sums.norm + 1e-6))
        torch._foreach_mul_(gradients, scale / sums.weight)
        return sums

    def _sums(self, outputs: Sequence[LossOutput], gradients: list[Tensor], ballot: list[float]) -> _Sums:
        weight, tokens = float(sum(output.weight for output in outputs)), sum(output.tokens for output in outputs)
        total = sum(output.sum.float() for output in outputs)
        assert isinstance(total, Tensor)
        if self.world.mesh is None:
            if not gradients or not weight:
                return _Sums(float(total), weight, tokens, 0.0, ballot)
            norm, loss = torch.stack([torch.nn.utils.get_total_norm(gradients) / weight, total]).tolist()
            return _Sums(loss, weight, tokens, norm, ballot)
        square = counted_square(gradients, self.world)
        shares = self.world.gather([float(total), weight, tokens, square, *ballot])
        loss, weight, count, *_ = add_up(self.world.distinct(shares))
        square, *counted = add_up([share[3:] for share in shares])
        return _Sums(loss, weight, int(count), math.sqrt(square) / weight if weight else 0.0, counted)

    def _diverged(self, step: int, loss: float, norm: float, reason: str) -> DivergedError:
        tried = self.guard.attempts()
        if math.isfinite(loss) and math.isfinite(norm):
            return DivergedError(
                f"the loss diverges: at step {step + 1:,} the {reason}{tried}.",
                where=self.context.where,
                hint="Lower `optimizer.lr`, or allow more with `spikes.threshold`, `spikes.skips` or `spikes.rewinds`. "
                "Checkpoints before this step are untouched.",
            )
        bad = [name for name, p in self.parameters if p.grad is not None and not local(p.grad).isfinite().all()]
        where = f", first in `{bad[0]}` and in {len(bad):,} of {len(self.parameters):,} parameters" if bad else ""
        return DivergedError(
            f"step {step + 1:,} is not finite: loss {loss:.4g}, gradient norm {norm:.4g}{where}{tried}.",
            where=self.context.where,
            hint="Lower `optimizer.lr`, lengthen `schedule.warmup_steps` or set `precision: fp32`. Checkpoints before "
            "this step are untouched.",
        )
