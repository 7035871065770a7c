"""What an evaluation measured, as tables: metrics in rows, models in columns, the best of each row marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmkit.report.files import as_finite, as_list, as_mapping, as_number, read_object

RESULTS = "results.json"
REFERENCE = "reference"
"""The baseline that reference answers make: a goal rather than something to beat."""
Mark = Literal["best", "close", ""]


@dataclass(frozen=True)
class Score:
    """A figure of one model: value, bounds of its interval, examples, and how it was computed.

    `mark` is "best" in its row, "close" where its interval overlaps that of the best, or empty.
    """

    value: float
    low: float | None
    high: float | None
    n: int | None
    signature: str
    mark: Mark = ""


@dataclass(frozen=True)
class Row:
    """One metric of one task: a score for each model that has one, and the baselines."""

    task: str
    metric: str
    better: str | None
    scores: Mapping[str, Score]
    baselines: Mapping[str, Score]

    @property
    def best(self) -> str | None:
        """The first of the models marked as best."""
        return next((model for model, score in self.scores.items() if score.mark == "best"), None)


@dataclass(frozen=True)
class EvaluatedModel:
    """A column: label, and what the results say of the model."""

    label: str
    family: str | None
    head: str | None
    parameters: int | None
    digest: str


@dataclass(frozen=True)
class Table:
    """Models that share tasks, and the rows of those tasks in the order in which they were measured."""

    models: tuple[EvaluatedModel, ...]
    rows: tuple[Row, ...]

    @property
    def tasks(self) -> tuple[tuple[str, tuple[Row, ...]], ...]:
        """The rows by task, without parts of tasks."""
        return self._by_task(part=False)

    @property
    def parts(self) -> tuple[tuple[str, tuple[Row, ...]], ...]:
        """The rows of parts of tasks ("answers/short"), by part."""
        return self._by_task(part=True)

    def _by_task(self, *, part: bool) -> tuple[tuple[str, tuple[Row, ...]], ...]:
        names = dict.fromkeys(row.task for row in self.rows)
        chosen = [name for name in names if ("/" in name and name.partition("/")[0] in names) == part]
        return tuple((name, tuple(row for row in self.rows if row.task == name)) for name in chosen)

    @property
    def compares(self) -> bool:
        """Whether there are several models."""
        return len(self.models) > 1

    @property
    def has_baselines(self) -> bool:
        """Whether any row has a baseline."""
        return any(row.baselines for row in self.rows)


@dataclass(frozen=True)
class Evaluation:
    """The results of one evaluation stage.

    Args:
        tables: models that share no task stand in tables of their own.
        confidence: probability mass of the intervals.
        left_out: task, model and reason, where a task did not measure a model.
    """

    tables: tuple[Table, ...]
    confidence: float
    left_out: tuple[tuple[str, str, str], ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all tables."""
        return tuple(row for table in self.tables for row in table.rows)


@dataclass
class _Group:
    scores: dict[str, Score] = field(default_factory=dict)
    baselines: dict[str, Score] = field(default_factory=dict)
    better: str | None = None


def read_evaluation(directory: Path) -> Evaluation | None:
    """The results in a stage's folder; None where there are none."""
    raw = read_object(directory / RESULTS)
    models = as_mapping(raw.get("models"))
    groups: dict[tuple[str, str], _Group] = {}
    for kind in ("results", "baselines"):
        for entry in map(as_mapping, as_list(raw.get(kind))):
            score = _score(entry)
            if score is None:
                continue
            group = groups.setdefault((str(entry.get("task", "")), str(entry.get("metric", ""))), _Group())
            (group.scores if kind == "results" else group.baselines)[str(entry.get("model", ""))] = score
            group.better = group.better or entry.get("better")
    if not groups:
        return None
    rows = [
        Row(task, metric, group.better, _marked(group.scores, group.better), group.baselines)
        for (task, metric), group in groups.items()
    ]
    labels = list(dict.fromkeys([*models, *(model for row in rows for model in row.scores)]))
    columns = [_model(label, as_mapping(models.get(label))) for label in labels]
    left_out = [as_mapping(entry) for entry in as_list(raw.get("left_out"))]
    named = ("task", "model", "reason")
    return Evaluation(
        _tables(columns, rows),
        as_finite(as_mapping(raw.get("interval")).get("confidence")) or 0.95,
        tuple(
            (task, model, reason) for task, model, reason in ([str(e.get(key, "")) for key in named] for e in left_out)
        ),
    )


def _score(entry: Mapping[str, Any]) -> Score | None:
    value = as_number(entry.get("value"))
    if value is None:
        return None
    n = as_finite(entry.get("n"))
    return Score(
        value,
        as_finite(entry.get("low")),
        as_finite(entry.get("high")),
        int(n) if n is not None else None,
        str(entry.get("signature", "")),
    )


def _model(label: str, entry: Mapping[str, Any]) -> EvaluatedModel:
    parameters = as_finite(entry.get("parameters"))
    return EvaluatedModel(
        label,
        str(entry["family"]) if entry.get("family") else None,
        str(entry["head"]) if entry.get("head") else None,
        int(parameters) if parameters is not None else None,
        str(entry.get("digest", "")),
    )


def _marked(scores: Mapping[str, Score], better: str | None) -> dict[str, Score]:
    """The scores of a row with the best marked, unless there is but one, or all are equal."""
    finite = [score.value for score in scores.values() if math.isfinite(score.value)]
    if not finite or len({score.value for score in scores.values()}) < 2 or better not in ("lower", "higher"):
        return dict(scores)
    best_value = min(finite) if better == "lower" else max(finite)
    best = next(score for score in scores.values() if score.value == best_value)
    return {model: _with_mark(score, best) for model, score in scores.items()}


def _with_mark(score: Score, best: Score) -> Score:
    mark: Mark = ""
    if score.value == best.value:
        mark = "best"
    elif None not in (score.low, score.high, best.low, best.high):
        overlap = score.low <= best.high and best.low <= score.high  # type: ignore[operator]
        mark = "close" if overlap and math.isfinite(score.value) else ""
    return Score(score.value, score.low, score.high, score.n, score.signature, mark)


def _tables(columns: Sequence[EvaluatedModel], rows: Sequence[Row]) -> tuple[Table, ...]:
    """Group tasks whose models overlap, directly or through other tasks."""
    groups: list[tuple[set[str], list[str]]] = []
    for task in dict.fromkeys(row.task for row in rows):
        models = {model for row in rows if row.task == task for model in row.scores}
        joined = [group for group in groups if group[0] & models]
        tasks = [name for group in joined for name in group[1]]
        place = groups.index(joined[0]) if joined else len(groups)
        merged = (models.union(*(group[0] for group in joined)), [*tasks, task])
        groups = [group for group in groups if group not in joined]
        groups.insert(place, merged)
    return tuple(
        Table(
            tuple(column for column in columns if column.label in models),
            tuple(row for task in tasks for row in rows if row.task == task),
        )
        for models, tasks in groups
    )


@dataclass(frozen=True)
class Headline:
    """The figure that says most of a task: its best model against a baseline, or else against the first model."""

    row: Row
    model: str
    score: Score
    against: str | None
    other: Score | None


def headlines(evaluation: Evaluation) -> tuple[Headline, ...]:
    """A headline for each task: its first metric with a baseline, or else its first one with a direction.

    Where a reward model judged the answers, their mean reward is one as well.
    """
    found = []
    for table in evaluation.tables:
        for _, rows in table.tasks:
            directed = [row for row in rows if row.better and row.scores]
            if not directed:
                continue
            row = next((row for row in directed if set(row.baselines) - {REFERENCE}), directed[0])
            rewards = [other for other in directed if other.metric == "reward" and other is not row and other.best]
            found += [_headline(row), *map(_headline, rewards)]
    return tuple(found)


def _headline(row: Row) -> Headline:
    model = row.best or next(iter(row.scores))
    return Headline(row, model, row.scores[model], *_compared(row, model))


def _compared(row: Row, model: str) -> tuple[str | None, Score | None]:
    for name, score in row.baselines.items():
        if name != REFERENCE:
            return name, score
    return next(((name, score) for name, score in row.scores.items() if name != model), (None, None))
