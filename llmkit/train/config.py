"""Settings that every training stage has. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator

from llmkit.config.base import Config, Facts, Finding, StageConfig, differs
from llmkit.train.checkpoints.config import CheckpointsConfig
from llmkit.train.memory.config import ActivationCheckpointing
from llmkit.train.optimizers.config import AverageConfig, OptimizerConfig
from llmkit.train.parallel.config import ParallelConfig


class ScheduleConfig(Config):
    """How the learning rate changes over the run."""

    name: Literal["cosine", "wsd", "linear", "inverse-sqrt", "constant"] = "cosine"
    """cosine: down along half a cosine. wsd: stable after the warm-up, then a linear decay at the end. linear: down on
    a line. inverse-sqrt: with the root of the step, whatever the number of steps, so that a run can be made longer."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up; by default a twentieth of the steps, at most 500."""
    warmup_tokens: int | None = Field(default=None, ge=1)
    """Tokens of linear warm-up, in place of steps (pretraining only). What follows is then measured in tokens too,
    which makes a difference where `phases` change what a step is made of."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end, as a fraction of the peak."""
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    """wsd: the part of all steps that the decay takes."""


SPIKE_WINDOW = 100
"""Steps that a step's loss and gradient norm are compared with, and within which bad steps are counted."""


class SpikesConfig(Config):
    """What to do about bad steps: those whose loss or gradient is not a finite number, or far above those before."""

    threshold: float | None = Field(default=None, gt=0)
    """Standard deviations above the running median of the last 100 steps from which on a loss or a gradient norm is a
    spike; 6 is a good start. null: only numbers that are not finite are bad."""
    history: int = Field(default=50, ge=2, le=SPIKE_WINDOW)
    """Steps that must have been seen before any is taken for a spike."""
    skips: int = Field(default=3, ge=0, le=SPIKE_WINDOW)
    """Bad steps in a row whose update is left out. After one more training goes back, or stops with a message."""
    skips_per_hundred: int = Field(default=10, ge=0, le=SPIKE_WINDOW)
    """The same for bad steps within a hundred."""
    rewinds: int = Field(default=0, ge=0)
    """How often training may go back to a checkpoint from before the bad steps and pass over their data. With 1 or
    more, a checkpoint of step 0 is written too."""
    lookback: int = Field(default=10, ge=0)
    """Steps before the first bad one that are passed over with it: what does the harm may come before what shows it."""

    @property
    def reach(self) -> int:
        """Steps that the last checkpoint to go back to may be old."""
        return SPIKE_WINDOW + self.lookback + 1 if self.rewinds else 0


class Clock(NamedTuple):
    """Where in the schedule of the learning rate a step is, in steps or in tokens.

    Args:
        done: after the step.
        total: of the whole run.
        warmup: of the warm-up.
        decay: of the decay of `wsd`.
    """

    done: int
    total: int
    warmup: int
    decay: int


class WandbConfig(Config):
    """Where the metrics go on Weights & Biases."""

    project: str = Field(min_length=1)
    """Project's name."""
    entity: str | None = None
    """Team or user; by default that of the login."""
    name: str | None = None
    """Name of the run; by default the stage's name."""
    mode: Literal["online", "offline"] = "online"
    """offline: the run is written below the stage's directory, to be sent later with `wandb sync`."""


class TrainConfig(StageConfig):
    """Settings of every stage that trains a model."""

    without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            "evaluate_every",
            "evaluate_batches",
            "checkpoints",
            "log_every",
            "watchdog",
            "wandb",
            "tensorboard",
            # On another number of ranks training goes on where it was, with the same batches.
            "parallel",
        }
    )

    shares_sequences: ClassVar[bool] = False
    """Whether ranks can share matrix products and the tokens of a sequence."""

    steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=16, ge=1)
    """Sequences for each optimizer step."""
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Sequences that go through the model at once; by default the whole batch. A smaller number takes less memory and
    gives the same gradient. auto: the largest that fits the memory of the device."""
    activation_checkpointing: ActivationCheckpointing = "none"
    """What blocks keep for the backward pass; the rest is computed again there, with the same gradient. none: all is
    kept. selective: what matrix products gave; the cheap rest is recomputed. full: a block's input alone, for a third
    more computation. {budget: ...}: full for as many blocks as are needed to fit. {blocks: ...}: full for so many."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How gradients become updates."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How the learning rate changes over the run."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient; null for no limit."""
    spikes: SpikesConfig = SpikesConfig()
    """What to do about steps whose loss or gradient is not finite, or far above the steps before."""
    average: AverageConfig | None = None
    """Average the weights over training; the average is then what is evaluated and saved as the model."""
    precision: Literal["auto", "fp32", "bf16", "bf16-pure", "float8"] = "auto"
    """bf16: matrix products in bfloat16 with weights kept in float32. auto: bf16 where it is measured to be faster.
    bf16-pure: weights and gradients in bfloat16 too, for half the memory; see `optimizer.rounding`. float8: as bf16,
    with the products of the blocks' linear maps in 8 bits, on GPUs that have them; worth it with `compile`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    parallel: ParallelConfig = ParallelConfig()
    """How ranks that `torchrun` starts share the work."""
    compile: bool = False
    """Compile the model's blocks with torch.compile: a slow start, then faster steps."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations on the validation split, besides the one at the end; by default ten over the run."""
    evaluate_batches: int = Field(default=8, ge=1)
    """Batches of each evaluation."""
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    """When checkpoints are written, where, and which are kept."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines of `metrics.jsonl`."""
    watchdog: float | None = Field(default=1800.0, gt=0)
    """Seconds without a step, a forward pass, or the end of an evaluation or checkpoint, after which the stacks of all
    threads are written and the process ends with exit code 1; null for no such watch."""
    wandb: WandbConfig | None = None
    """Log to Weights & Biases as well."""
    tensorboard: bool = False
    """Log to TensorBoard as well, into `tensorboard/` (needs the extra `tensorboard`)."""

    @field_validator("optimizer", "schedule", mode="before")
    @classmethod
    def _complete_from_the_stage(cls, value: Any, info: Any) -> Any:
        """What a mapping leaves out has the default of this kind of stage, unless it names another method than that."""
        default = cls.model_fields[info.field_name].default
        if isinstance(value, dict) and value.get("name", default.name) == default.name:
            return {**default.model_dump(exclude_unset=True), **value}
        return value

    @property
    def micro_batch(self) -> int:
        """Sequences that go through the model at once; the whole batch where `auto` has not been settled."""
        return self.micro_batch_size if isinstance(self.micro_batch_size, int) else self.batch_size

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up."""
        written = self.schedule.warmup_steps
        return min(500, self.steps // 20) if written is None else written

    @property
    def decay_steps(self) -> int:
        """Steps of the decay of the schedule `wsd`."""
        return max(1, round(self.steps * self.schedule.decay_fraction))

    def clock(self, step: int) -> Clock:
        """Where in the schedule a step (from 0) is."""
        return Clock(step + 1, self.steps, self.warmup_steps, self.decay_steps)

    @property
    def evaluation_interval(self) -> int:
        """Steps between evaluations."""
        return self.evaluate_every or max(1, self.steps // 10)

    def check(self, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """Numbers that do not go together, and settings that would have no effect."""
        if self.batch_size % self.micro_batch:
            yield Finding(
                f"micro_batch_size {self.micro_batch} does not divide batch_size {self.batch_size}.",
                key="micro_batch_size",
                hint=f"Take one of: {_divisors(self.batch_size)}.",
            )
        yield from self.parallel.check(self.batch_size)
        for name in ("tensor", "context"):
            if getattr(self.parallel, name) > 1 and not self.shares_sequences:
                yield Finding(
                    f"parallel.{name} is for pretraining: here ranks share rows and weights alone.",
                    key=f"parallel.{name}",
                    hint="Remove it; `parallel.shard` divides the weights.",
                )
        if self.compile and self.parallel.tensor * self.parallel.context > 1:
            yield Finding(
                "blocks that ranks share by `parallel.tensor` or `parallel.context` are not compiled.",
                key="compile",
                hint="Remove `compile`, or divide the weights by `parallel.shard` instead.",
            )
        yield from self._check_schedule()
        yield from self._check_trackers()
        yield from self.checkpoints.check(self.steps)
        yield from self._check_spikes()
        if self.precision == "float8" and self.parallel.tensor > 1:
            yield Finding(
                "linear maps that tensor parallelism cuts are not computed in float8.",
                key="precision",
                hint="Set `precision: bf16`, or `parallel.tensor: 1`.",
            )
        yield from self.optimizer.check(self.precision, self.schedule.name, self.average is not None)

    def _check_schedule(self) -> Iterator[Finding]:
        schedule = self.schedule
        if schedule.warmup_tokens is not None:
            yield from self._check_warmup_tokens(schedule.warmup_tokens)
        elif self.warmup_steps > self.steps:
            yield Finding(
                f"the warm-up of {self.warmup_steps:,} steps is longer than the training of {self.steps:,}.",
                key="schedule.warmup_steps",
                hint=f"A twentieth is usual: {max(1, self.steps // 20):,}.",
            )
        elif schedule.name == "wsd" and self.warmup_steps + self.decay_steps > self.steps:
            yield Finding(
                f"warm-up ({self.warmup_steps:,} steps) and decay ({self.decay_steps:,}) together are longer than the "
                f"training of {self.steps:,} steps.",
                key="schedule.decay_fraction",
                hint="Shorten one of them.",
            )
        if schedule.name != "wsd" and differs(schedule, "decay_fraction"):
            yield Finding(
                f"decay_fraction is a setting of wsd; {schedule.name} ignores it.",
                key="schedule.decay_fraction",
                hint="Remove it, or set `name: wsd`.",
            )
        if schedule.name in ("constant", "inverse-sqrt") and differs(schedule, "final_fraction"):
            yield Finding(
                f"the schedule {schedule.name} has no final_fraction.",
                key="schedule.final_fraction",
                hint="Remove it, or choose another schedule.",
            )

    def _check_warmup_tokens(self, tokens: int) -> Iterator[Finding]:
        key = "schedule.warmup_tokens"
        if self.schedule.warmup_steps is not None:
            yield Finding("`warmup_steps` and `warmup_tokens` both say how long the warm-up is.", key=key)
        yield Finding(
            "the tokens of a step are known in pretraining alone.", key=key, hint="Set `warmup_steps` in its place."
        )

    def _check_spikes(self) -> Iterator[Finding]:
        spikes = self.spikes
        if spikes.threshold is None and differs(spikes, "history"):
            yield Finding(
                "without a threshold no step is taken for a spike, and history has no effect.",
                key="spikes.history",
                hint="Remove it, or set `threshold: 6`.",
            )
        if not spikes.rewinds and differs(spikes, "lookback"):
            yield Finding(
                "lookback says what a rewind passes over, and there are none.",
                key="spikes.lookback",
                hint="Remove it, or set `rewinds: 1`.",
            )

    def _check_trackers(self) -> Iterator[Finding]:
        if self.wandb is not None and find_spec("wandb") is None:
            yield Finding("the package wandb is not installed.", key="wandb", hint="Install it: pip install wandb.")
        if self.tensorboard and find_spec("tensorboard") is None:
            yield Finding(
                "the package tensorboard is not installed.",
                key="tensorboard",
                hint="Install the extra: pip install 'llmkit[tensorboard]'.",
            )


def _divisors(number: int) -> str:
    return ", ".join(str(candidate) for candidate in range(1, number + 1) if number % candidate == 0)
