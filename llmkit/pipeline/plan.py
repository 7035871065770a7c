"""What training will cost, before it is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmkit.config.experiment import chain_facts
from llmkit.console import format_seconds
from llmkit.pipeline.inputs import outside_facts
from llmkit.pipeline.run import Pipeline, raise_errors
from llmkit.store.stage import Plan

ASSUMED_UTILIZATION = 0.5
"""Share of the measured matrix rate that training is reckoned to reach; the report shows what it did reach."""


def plan_experiment(pipeline: Pipeline) -> dict[str, Any]:
    """The plan of every stage that trains a model.

    Returns:
        `stages` (name, kind, parameters, tokens, flops, memory by part in bytes, seconds), the `device`, its measured
        `matrix_rate` in FLOP/s, and `notes`.

    Raises:
        ConfigError: the experiment has errors.
    """
    raise_errors(pipeline.experiment, pipeline.findings(deep=False))
    outside, _ = outside_facts(pipeline.experiment)
    planned: list[tuple[str, str, Plan]] = []
    for name, facts in chain_facts(pipeline.experiment, outside).items():
        kind = pipeline.experiment.kinds[name]
        make_plan = getattr(kind.module(), "plan", None)
        if make_plan is not None:
            planned.append((name, kind.name, make_plan(pipeline.experiment.stages[name], facts)))
    device, rate = _matrix_rate()
    rows = [
        {
            "name": name,
            "kind": kind,
            **asdict(plan),
            "seconds": None if plan.flops is None else plan.flops / (rate * ASSUMED_UTILIZATION),
        }
        for name, kind, plan in planned
    ]
    notes = [f"{row['name']}: {note}" for row in rows for note in row.pop("notes")]
    total = sum(row["seconds"] or 0.0 for row in rows)
    notes.append(
        f"Time at {ASSUMED_UTILIZATION:.0%} of this {device}'s measured matrix rate of {rate / 1e9:,.0f} GFLOP/s: "
        f"{format_seconds(total)} of training in all."
    )
    return {"stages": rows, "device": device, "matrix_rate": rate, "notes": notes}


def _matrix_rate() -> tuple[str, float]:
    """The device that training would take, and its best measured rate of matrix products in FLOP/s."""
    import torch

    from llmkit.train.engine import matrix_rate

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return device, max(matrix_rate(device, dtype) for dtype in (torch.float32, torch.bfloat16))


def plan_table(planned: dict[str, Any]) -> tuple[Sequence[str], list[list[Any]]]:
    """Columns and rows of a plan for people."""
    columns = ("stage", "kind", "parameters", "tokens", "TFLOP", "memory MiB", "time")
    rows = [
        [
            row["name"],
            row["kind"],
            row["parameters"],
            row["tokens"],
            None if row["flops"] is None else row["flops"] / 1e12,
            round(sum(row["memory_bytes"].values()) / 2**20) if row["memory_bytes"] else None,
            None if row["seconds"] is None else format_seconds(row["seconds"]),
        ]
        for row in planned["stages"]
    ]
    return columns, rows
