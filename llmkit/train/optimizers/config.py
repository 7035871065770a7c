"""Settings of optimizers, and what their state takes. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from llmkit.config.base import Config, Finding, differs

Fraction = Annotated[float, Field(ge=0, lt=1)]
OptimizerName = Literal["adamw", "muon", "normuon", "lion", "adafactor", "schedule-free"]
MATRICES_ONLY: frozenset[OptimizerName] = frozenset({"muon", "normuon"})


class ParameterGroup(Config):
    """Settings of the parameters whose names match."""

    match: str = Field(min_length=1)
    """Names of parameters as llmkit gives them, with `*` for anything, such as `embeddings.*`, `*.bias`,
    `blocks.0.attention.*`. Of several groups that match, the first counts."""
    lr_factor: float | None = Field(default=None, gt=0, le=1000)
    """Times the learning rate; by default 1, or what `base_width` says."""
    weight_decay: float | None = Field(default=None, ge=0, le=10)
    """In place of the optimizer's; by default its own on matrices and 0 on norms, biases and embeddings."""
    name: OptimizerName | None = None
    """Another optimizer for them, with the same settings otherwise. muon and normuon are for matrices alone."""


class OptimizerConfig(Config):
    """How gradients become updates."""

    name: OptimizerName = "adamw"
    """adamw: AdamW for everything. muon: orthogonalised momentum for the matrices inside the blocks, which learns more
    from each token at the cost of a few matrix products a step, and AdamW for embeddings, head, norms and biases.
    normuon: the same with the sizes of the rows evened out. lion: the sign of a momentum, with half the state of AdamW;
    it wants a third to a tenth of AdamW's learning rate and `betas: [0.9, 0.99]`. adafactor: a second moment by rows
    and columns and no momentum, which keeps next to nothing. schedule-free: AdamW whose model is an average along the
    way, as good at any step as after a decay; it wants `schedule: {name: constant}`, a warm-up, and a rate one to three
    times AdamW's."""
    lr: float = Field(default=1e-3, gt=0, le=10)
    """Peak learning rate. Muon's updates are scaled to the size of AdamW's, so the same rate fits both."""
    betas: list[Fraction] = Field(default=[0.9, 0.95], min_length=2, max_length=2)
    """Decay rates of AdamW's first and second moment, or Lion's two of its momentum; normuon takes the second one for
    the average of its rows too, schedule-free the first one for how near gradients are taken to the average."""
    eps: float = Field(default=1e-8, gt=0, le=1e-2)
    """AdamW's and schedule-free's term against division by zero."""
    weight_decay: float = Field(default=0.1, ge=0, le=10)
    """Decoupled weight decay, on matrices alone: norms, biases and embeddings are not decayed."""
    momentum: Fraction = 0.95
    """Muon's momentum."""
    groups: list[ParameterGroup] = Field(default=[])
    """Other settings for some parameters, chosen by name."""
    base_width: int | None = Field(default=None, ge=1)
    """The width of the smaller model that this learning rate was found with: the rate of each parameter and the initial
    weights then follow the spectral rule, under which the best rate stays the same at every width. Heads are to keep
    their width, and the MLPs their ratio to the model's."""
    base_batch_size: int | None = Field(default=None, ge=1)
    """The batch size that this learning rate was found with: the rate is multiplied by the square root of how many
    times larger `batch_size` is."""
    rounding: Literal["stochastic", "kahan"] = "stochastic"
    """With `precision: bf16-pure`, what keeps small updates of weights in bfloat16 from being lost. stochastic: up or
    down at random, right on average. kahan: what a rounding left out is kept, in 2 more bytes for each weight, so that
    updates add up as in float32."""
    state: Literal["fp32", "bf16"] = "fp32"
    """Precision that moments are kept in between updates; bf16 is rounded stochastically and halves their memory."""
    offload: bool = False
    """Keep moments in the memory of the CPU while a GPU computes: each step they come and go over the bus."""

    def peak(self, batch_size: int) -> float:
        """The learning rate at the top of the schedule for batches of so many sequences.

        Adaptive methods divide by a gradient's noise, which falls with the root of the batch (Malladi et al. 2022).
        """
        return self.lr if self.base_batch_size is None else self.lr * math.sqrt(batch_size / self.base_batch_size)

    def check(self, precision: str, schedule: str, averages: bool) -> Iterator[Finding]:
        """Settings that do not go together or would have no effect.

        Args:
            precision: of the stage.
            schedule: the name of its schedule.
            averages: whether it averages the weights.
        """
        names = {self.name, *(group.name for group in self.groups if group.name is not None)}
        if not names & MATRICES_ONLY and differs(self, "momentum"):
            yield Finding(
                f"momentum is a setting of muon; {self.name} ignores it.",
                key="optimizer.momentum",
                hint="Remove it, or set `name: muon`.",
            )
        if names == {"lion"} and differs(self, "eps"):
            yield Finding("lion divides by nothing and has no eps.", key="optimizer.eps", hint="Remove it.")
        if names == {"adafactor"}:
            for key in ("betas", "eps"):
                if differs(self, key):
                    yield Finding(f"adafactor has no {key}.", key=f"optimizer.{key}", hint="Remove it.")
        if precision != "bf16-pure" and differs(self, "rounding"):
            yield Finding(
                "rounding is for weights in bfloat16; with this precision they are in float32.",
                key="optimizer.rounding",
                hint="Remove it, or set `precision: bf16-pure`.",
            )
        if "schedule-free" in names:
            yield from self._check_schedule_free(schedule, averages)

    def _check_schedule_free(self, schedule: str, averages: bool) -> Iterator[Finding]:
        if schedule != "constant":
            yield Finding(
                f"schedule-free takes the place of a decay, and the schedule {schedule} decays.",
                key="schedule.name",
                hint="Set `schedule: {name: constant}`; the warm-up stays.",
            )
        if self.betas[0] == 0:
            yield Finding(
                "with a first beta of 0 schedule-free never uses its average.",
                key="optimizer.betas",
                hint="0.9 is usual.",
            )
        if averages:
            yield Finding(
                "schedule-free averages the weights by itself.", key="average", hint="Remove one of the two averages."
            )


class AverageConfig(Config):
    """An exponential moving average of the weights, which is then what is evaluated and saved as the model."""

    decay: Fraction = 0.999
    """Share of the average that stays at each step, after a start in which it is less: 0.999 looks back about a
    thousand steps."""


def state_bytes(
    config: OptimizerConfig,
    shape: Sequence[int],
    *,
    hidden: bool,
    average: bool = False,
    pure: bool = False,
) -> int:
    """Bytes that the optimizer keeps for a parameter between steps, its weights and gradient not counted.

    Counts of a few bytes a parameter are left out; so are `config.groups` with another `name`. With `config.offload`
    they are in the memory of the CPU.

    Args:
        config: of the optimizer.
        shape: of the parameter.
        hidden: whether it is a weight matrix inside the model's blocks, which muon and normuon take.
        average: whether the stage has an `average`, in float32.
        pure: whether weights are in bfloat16 (`precision: bf16-pure`).
    """
    size, each = math.prod(shape), 4 if config.state == "fp32" else 2
    total = {
        "adamw": 2 * each * size,
        "muon": each * size if hidden else 2 * each * size,
        "normuon": each * size + 4 * size // shape[-1] if hidden else 2 * each * size,
        "lion": each * size,
        "adafactor": each * size if len(shape) < 2 else 4 * (size // shape[-1] + size // shape[-2]),
        "schedule-free": (4 + each) * size,
    }[config.name]
    total += 4 * size if average else 0
    return total + (2 * size if pure and config.rounding == "kahan" else 0)
