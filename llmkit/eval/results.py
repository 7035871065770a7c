"""The files of an evaluation, and the table that people see. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit.console import format_cell
from llmkit.store.files import write_json_atomic, write_text_atomic

RESULTS = "results.json"
SAMPLES = "samples.jsonl"


def write_results(directory: Path, results: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> None:
    """Write `results.json` and `samples.jsonl`; equal contents give equal bytes."""
    write_text_atomic(directory / SAMPLES, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples))
    write_json_atomic(directory / RESULTS, results)


def results_tables(results: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """A table for each task: metrics against the models that can do it, the best of each row marked with `*`.

    Parts of a task (`answers/short`) are left out: they are many, and in the file.

    Args:
        results: the contents of `results.json`.

    Returns:
        for each task its name, the columns (metric, each model measured, baseline) and rows of texts.
    """
    rows: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for result in results["results"]:
        if "/" not in result["task"]:
            rows.setdefault(result["task"], {}).setdefault(result["metric"], {})[result["model"]] = result
    baselines: dict[tuple[str, str], list[str]] = {}
    for result in results["baselines"]:
        cell = f"{format_cell(result['value'])} {result['model']}"
        baselines.setdefault((result["task"], result["metric"]), []).append(cell)
    tables = []
    for task, by_metric in rows.items():
        models = [model for model in results["models"] if any(model in found for found in by_metric.values())]
        body = []
        for metric, by_model in by_metric.items():
            best = best_model(list(by_model.values()))
            cells = [_cell(by_model.get(model), marked=model == best) for model in models]
            body.append([metric, *cells, "\n".join(baselines.get((task, metric), []))])
        tables.append((task, ["metric", *models, "baseline"], body))
    return tables


def best_model(results: Sequence[Mapping[str, Any]]) -> str | None:
    """The model with the best figure among several; None where there is no best one."""
    better = results[0]["better"]
    if better is None or len(results) < 2:
        return None
    choose = min if better == "lower" else max
    best = choose(results, key=lambda result: result["value"])
    ties = [result for result in results if result["value"] == best["value"]]
    return str(best["model"]) if len(ties) == 1 else None


def _cell(result: Mapping[str, Any] | None, *, marked: bool) -> str:
    if result is None:
        return ""
    return format_cell(result["value"]) + ("*" if marked else "")
