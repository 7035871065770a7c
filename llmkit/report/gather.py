"""A run's directory as one value: everything that the page shows, before it is laid out."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import ArtifactError
from llmkit.report.cards import ModelCard, model_cards
from llmkit.report.cost import Cost, read_cost
from llmkit.report.curves import Curves, read_curves
from llmkit.report.data import DataReport, read_data
from llmkit.report.results import Evaluation, Headline, headlines, read_evaluation
from llmkit.report.samples import Rollout, TaskSamples, read_rollouts, read_samples
from llmkit.report.stages import DATA, RUN_FILE, TRAINING, Stage, read_settings, read_stages

_HINT = "Name a run's directory, such as runs/quickstart."


@dataclass(frozen=True)
class RunReport:
    """All that is known of a run.

    Args:
        name: name of the run.
        place: its folder as a person writes it ("runs/quickstart").
        settings: the text of its resolved config; empty where there is none.
        stages: its stages in dependency order.
        curves: what each training stage logged.
        data: what each data stage did.
        evaluations: results of each evaluation.
        samples: samples of each evaluation.
        rollouts: answers given while a stage trained on them.
        cost: what it cost.
        cards: a card for each model.
        modified: when the last manifest was written, in seconds since 1970.
    """

    name: str
    place: str
    settings: str
    stages: tuple[Stage, ...]
    curves: dict[str, Curves]
    data: dict[str, DataReport]
    evaluations: dict[str, Evaluation]
    samples: dict[str, tuple[TaskSamples, ...]]
    rollouts: dict[str, tuple[Rollout, ...]]
    cost: Cost
    cards: tuple[ModelCard, ...]
    modified: float | None

    @property
    def headlines(self) -> tuple[Headline, ...]:
        """The figures that say most, over all evaluations."""
        return tuple(found for evaluation in self.evaluations.values() for found in headlines(evaluation))


def gather(run_directory: Path) -> RunReport:
    """Read a run's directory; stages that are missing, unfinished or damaged are told as such.

    Raises:
        ArtifactError: there is no run here.
    """
    settings, text = _settings(run_directory)
    stages = read_stages(run_directory, settings)
    if not stages:
        raise ArtifactError(
            "there is no run here (neither run.yaml nor a finished stage).",
            where=str(run_directory),
            hint=_HINT,
        )
    name = str(settings.get("run") or run_directory.resolve().name)
    place = f"{settings.get('runs_dir') or 'runs'}/{name}"
    here = [(stage, stage.directory) for stage in stages if stage.directory is not None]
    data = {stage.name: read_data(folder, stage.kind, stage.config) for stage, folder in here if stage.kind in DATA}
    evaluations = {stage.name: read_evaluation(folder) for stage, folder in here if stage.kind == "eval"}
    return RunReport(
        name=name,
        place=place,
        settings=text,
        stages=stages,
        curves={stage.name: read_curves(folder) for stage, folder in here if stage.kind in TRAINING},
        data=data,
        evaluations={name: found for name, found in evaluations.items() if found is not None},
        samples={stage.name: read_samples(folder) for stage, folder in here if stage.kind == "eval"},
        rollouts={stage.name: read_rollouts(folder) for stage, folder in here if stage.kind == "rlhf"},
        cost=read_cost(stages),
        cards=model_cards(stages, data, place),
        modified=max((stage.modified for stage in stages if stage.modified is not None), default=None),
    )


def _settings(run_directory: Path) -> tuple[dict[str, Any], str]:
    if not run_directory.is_dir():
        raise ArtifactError("there is no such folder.", where=str(run_directory), hint=_HINT)
    return read_settings(run_directory) if (run_directory / RUN_FILE).is_file() else ({}, "")


def gather_json(run_directory: Path) -> dict[str, Any]:
    """The same as a mapping that JSON can hold: paths as text relative to the run, numbers that are not finite as None.

    Raises:
        ArtifactError: there is no run here.
    """
    value: dict[str, Any] = _plain(asdict(gather(run_directory)), run_directory)
    return value


def _plain(value: Any, base: Path) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner, base) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, base) for inner in value]
    if isinstance(value, Path):
        return value.relative_to(base).as_posix()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
