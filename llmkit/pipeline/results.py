"""What a finished stage has to say: its summary, and the table of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from llmkit.console import emit_table
from llmkit.pipeline.inputs import stage_directory
from llmkit.pipeline.run import Pipeline, StageState
from llmkit.store.artifact import open_artifact


def stage_summary(pipeline: Pipeline, state: StageState) -> dict[str, Any]:
    """A finished stage as a mapping for machines."""
    place = stage_directory(pipeline.experiment, state.name)
    manifest = open_artifact(place, verify=False).manifest
    return {
        "name": state.name,
        "kind": state.kind,
        "was": state.state,
        "path": str(place),
        "digest": manifest.content_digest,
        "summary": dict(manifest.summary),
    }


def show_results(pipeline: Pipeline, evaluations: Iterable[StageState]) -> None:
    """Print the table of each evaluation."""
    for state in evaluations:
        from llmkit.eval.results import results_tables

        file = stage_directory(pipeline.experiment, state.name) / "results.json"
        for task, columns, rows in results_tables(json.loads(file.read_text(encoding="utf-8"))):
            emit_table(columns, rows, title=f"{state.name}: {task}")
