"""What models wrote: their answers to the same prompts side by side, and answers while they were trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.report.files import as_finite, as_mapping, as_number, as_text, read_lines

SAMPLES = "samples.jsonl"
SHOWN_OF_TASK = 6
SHOWN_OF_STEP = 3


@dataclass(frozen=True)
class Output:
    """What one model wrote, and the scores that it got for it."""

    model: str
    text: str
    scores: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Sample:
    """A prompt, the reference answer where there is one, and the models' outputs."""

    id: str
    prompt: str
    reference: str | None
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class TaskSamples:
    """The first samples of a task, and how many there are in the file."""

    task: str
    total: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Rollout:
    """An answer that a model gave while it was trained, and the reward that it got."""

    step: int
    prompt: str
    completion: str
    reference: str | None
    reward: float | None
    scores: tuple[tuple[str, Any], ...]


def read_rollouts(directory: Path) -> tuple[Rollout, ...]:
    """The first answers of the first step and of the last step that a stage with rollouts wrote down."""
    first: list[Rollout] = []
    last: list[Rollout] = []
    for row in read_lines(directory / SAMPLES):
        step = as_finite(row.get("step"))
        if step is None or "completion" not in row:
            continue
        rollout = _rollout(round(step), row)
        if last and last[0].step != rollout.step:
            last = []
        chosen = first if not first or first[0].step == rollout.step else last
        if len(chosen) < SHOWN_OF_STEP:
            chosen.append(rollout)
    return (*first, *last)


def _rollout(step: int, row: Mapping[str, Any]) -> Rollout:
    reference = row.get("reference")
    return Rollout(
        step,
        as_text(row.get("prompt", "")),
        as_text(row["completion"]),
        as_text(reference) if reference is not None else None,
        as_number(row.get("reward")),
        tuple((str(name), value) for name, value in as_mapping(row.get("scores")).items()),
    )


def read_samples(directory: Path) -> tuple[TaskSamples, ...]:
    """The samples of an evaluation by task, in the order of the file."""
    shown: dict[str, list[Sample]] = {}
    totals: dict[str, int] = {}
    for row in read_lines(directory / SAMPLES):
        if not isinstance(row.get("outputs"), dict):
            continue
        task = as_text(row.get("task", ""))
        totals[task] = totals.get(task, 0) + 1
        samples = shown.setdefault(task, [])
        if len(samples) < SHOWN_OF_TASK:
            samples.append(_sample(row))
    return tuple(TaskSamples(task, totals[task], tuple(samples)) for task, samples in shown.items())


def _sample(row: Mapping[str, Any]) -> Sample:
    scores = as_mapping(row.get("scores"))
    outputs = tuple(
        Output(model, as_text(output), tuple(_scores_of(model, scores)))
        for model, output in as_mapping(row["outputs"]).items()
    )
    reference = row.get("reference")
    return Sample(
        as_text(row.get("id", "")),
        as_text(row.get("prompt", "")),
        as_text(reference) if reference is not None else None,
        outputs,
    )


def _scores_of(model: str, scores: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Scores of one model, whether they are given by model and metric, by metric and model, or one for each model."""
    own = scores.get(model)
    if isinstance(own, dict):
        return [(str(metric), value) for metric, value in own.items()]
    if own is not None:
        return [("score", own)]
    by_metric = {str(metric): as_mapping(values) for metric, values in scores.items()}
    return [(metric, values[model]) for metric, values in by_metric.items() if model in values]
