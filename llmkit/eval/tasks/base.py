"""The contract of a task: records of each model, one for each example, and results made of the records.

A record holds what the metrics need and nothing that depends on other models, so that a model's records can be kept
when the work is interrupted; results are computed at the end, from all records, in a moment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from llmkit.config.base import Finding
from llmkit.eval.metrics.base import Bootstrap, Metric
from llmkit.eval.models import Candidate, Subject
from llmkit.eval.tasks.config import BaseTask
from llmkit.store.stage import ResolvedInput

Record = dict[str, Any]
Config = TypeVar("Config", bound=BaseTask)
Example = TypeVar("Example")
Begin = Callable[[int], Callable[[int], None]]
"""Told how many units there are to do; gives a function that counts units as done."""


@dataclass(frozen=True)
class Settings:
    """Settings that all tasks of an evaluation share."""

    seed: int
    batch_size: int
    precision: str
    bootstrap: Bootstrap


@dataclass(frozen=True)
class Measurement:
    """What a model has done on a task.

    Args:
        records: one for each example, in the order of the task's examples; JSON.
        how: what the signature has to say of this model's part (its tokenizer, its window).
        tokens: tokens that went through the model, read or written.
    """

    records: Sequence[Record]
    how: str
    tokens: int


@dataclass(frozen=True)
class Measured:
    """All measurements of a task: of its models by label, and of its judge where it has one."""

    models: Mapping[str, Measurement]
    judged: Measurement | None = None


@dataclass(frozen=True)
class Result:
    """A figure of one model on one task."""

    model: str
    task: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    signature: str
    better: str | None


class Task(ABC, Generic[Config]):
    """A task with its examples read.

    Args:
        config: its settings.
        data: where its examples are.
        settings: what all tasks share.
        models: the models that it measures, unopened.
        judge: its reward model, unopened, where it has one.

    Raises:
        LLMKitError: the examples cannot be read.
    """

    def __init__(
        self,
        config: Config,
        data: ResolvedInput,
        settings: Settings,
        models: Sequence[Candidate],
        judge: Candidate | None = None,
    ) -> None:
        self.config = config
        self.data = data
        self.settings = settings
        self.models = models
        self.judge = judge
        self.title = config.title
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Read the examples."""

    @abstractmethod
    def measure(self, subject: Subject, begin: Begin) -> Measurement:
        """Records of one model."""

    @abstractmethod
    def results(self, measured: Measured) -> list[Result]:
        """Figures of all models."""

    def judge_answers(self, judge: Subject, measured: Mapping[str, Measurement], begin: Begin) -> Measurement:
        """Records of the judge on what the models did; only for tasks that have one."""
        raise NotImplementedError

    def baselines(self, measured: Measured) -> list[Result]:
        """The same figures of something simpler."""
        return []

    def samples(self, measured: Measured, count: int) -> list[Record]:
        """At most `count` examples with what every model answered."""
        return []

    def findings(self) -> list[Finding]:
        """What is wrong between these examples and these models; keys are below the task."""
        return []

    def estimate(
        self, model: str, metric: Metric[Example], examples: Sequence[Example], *, task: str = "", note: str = ""
    ) -> Result:
        """A metric with its interval.

        Args:
            model: whose examples these are.
            metric: what to compute.
            examples: in the same order for every model.
            task: name of a part of the task; by default the task's own.
            note: what the signature says beside the metric's own.
        """
        found = self.settings.bootstrap.estimate(metric, examples)
        signature = " | ".join(part for part in (metric.signature, note) if part)
        return Result(
            model,
            task or self.title,
            metric.name,
            found.value,
            found.low,
            found.high,
            found.n,
            signature,
            metric.better,
        )


def spread(groups: Sequence[str], count: int) -> list[int]:
    """Places of at most `count` examples, as evenly as can be from every group, first ones first."""
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    rounds = max((len(places) for places in members.values()), default=0)
    order = [places[turn] for turn in range(rounds) for places in members.values() if turn < len(places)]
    return order[:count]
