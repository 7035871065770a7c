"""What a run cost: time, tokens and floating-point operations of each stage, as far as each stage recorded them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmkit.report.files import as_finite, read_object
from llmkit.report.stages import TRAINING, Stage

ENGINE = "engine.json"


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage; None where it was not recorded or does not apply.

    Args:
        stage: its name.
        kind: its kind.
        seconds: wall-clock time.
        tokens: tokens that it trained on, or wrote.
        flops: floating-point operations of training.
        matrix_rate: floating-point operations a second that the machine was measured to reach in matrix products.
        peak_memory: bytes.
        device: "cpu" or "cuda".
    """

    stage: str
    kind: str
    seconds: float | None
    tokens: float | None
    flops: float | None
    matrix_rate: float | None
    peak_memory: float | None
    device: str | None

    @property
    def trains(self) -> bool:
        """Whether the stage trains a model, so that its tokens are training tokens."""
        return self.kind in TRAINING

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens over time."""
        return self.tokens / self.seconds if self.tokens is not None and self.seconds else None

    @property
    def flop_rate(self) -> float | None:
        """Floating-point operations over time."""
        return self.flops / self.seconds if self.flops is not None and self.seconds else None

    @property
    def matrix_share(self) -> float | None:
        """Share of the measured rate of matrix products that the stage reached."""
        return self.flop_rate / self.matrix_rate if self.flop_rate is not None and self.matrix_rate else None


@dataclass(frozen=True)
class Cost:
    """Cost of all stages that are done, and totals; tokens are those of training."""

    stages: tuple[StageCost, ...]

    @property
    def seconds(self) -> float:
        """Time of all stages together."""
        return sum(row.seconds or 0.0 for row in self.stages)

    @property
    def tokens(self) -> float:
        """Tokens trained on."""
        return sum(row.tokens or 0.0 for row in self.stages if row.trains)

    @property
    def flops(self) -> float:
        """Floating-point operations of training."""
        return sum(row.flops or 0.0 for row in self.stages)


def read_cost(stages: Sequence[Stage]) -> Cost:
    """The cost of every finished stage, in their order."""
    return Cost(tuple(_stage_cost(stage) for stage in stages if stage.finished))


def _stage_cost(stage: Stage) -> StageCost:
    engine = read_object(stage.directory / ENGINE) if stage.directory is not None else {}
    return StageCost(
        stage.name,
        stage.kind,
        stage.seconds,
        as_finite(stage.summary.get("tokens")),
        as_finite(stage.summary.get("flops")),
        as_finite(engine.get("matrix_rate")),
        as_finite(stage.summary.get("peak_memory_bytes")),
        str(engine["device"]) if engine.get("device") else None,
    )
