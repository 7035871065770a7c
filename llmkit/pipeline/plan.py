"""What training will cost, before it is started, on this machine or another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from llmkit.config.experiment import chain_facts
from llmkit.console import format_bytes, format_seconds
from llmkit.pipeline.inputs import outside_facts
from llmkit.pipeline.run import Pipeline, raise_errors
from llmkit.store.stage import Plan
from llmkit.train.config import TrainConfig
from llmkit.train.memory.machines import Machine, named_machine, this_machine

ASSUMED_UTILIZATION = 0.5
"""Share of the matrix rate that training is reckoned to reach; the report shows what it did reach."""


def plan_experiment(pipeline: Pipeline, device: str | None = None, count: int | None = None) -> dict[str, Any]:
    """The plan of every stage that trains a model.

    Args:
        pipeline: of the experiment.
        device: a GPU of `llmkit.train.memory.machines`; by default what training would take here.
        count: how many of them; by default the fewest that a stage's `parallel` is for.

    Returns:
        `stages` (name, kind, parameters, tokens, flops, flops_per_token, memory by part in bytes for each device,
        devices, seconds, joules, ...), the `machine` with its rates in FLOP/s, and `notes`.

    Raises:
        ConfigError: the experiment has errors, the device is not known, or `parallel` is for another number.
    """
    raise_errors(pipeline.experiment, pipeline.findings(deep=False))
    machine = this_machine() if device is None else named_machine(device)
    outside, _ = outside_facts(pipeline.experiment)
    rows: list[dict[str, Any]] = []
    for name, facts in chain_facts(pipeline.experiment, outside).items():
        kind = pipeline.experiment.kinds[name]
        make_plan = getattr(kind.module(), "plan", None)
        if make_plan is not None:
            config = pipeline.experiment.stages[name]
            assert isinstance(config, TrainConfig)
            machines = replace(machine, count=count or config.parallel.fewest_ranks)
            plan = make_plan(config, facts, machines)
            rows.append({"name": name, "kind": kind.name, **asdict(plan), **_cost(plan, machines)})
    notes = [f"{row['name']}: {note}" for row in rows for note in row.pop("notes")]
    notes += _closing(rows, machine)
    return {"stages": rows, "machine": {**asdict(machine), "assumed_utilization": ASSUMED_UTILIZATION}, "notes": notes}


def _cost(plan: Plan, machine: Machine) -> dict[str, float | None]:
    """FLOPs for each token, and estimates of time and energy."""
    if plan.flops is None:
        return {"devices": machine.count, "flops_per_token": None, "seconds": None, "joules": None}
    rate = machine.rate(plan.precision or machine.precision("auto")) * machine.count * ASSUMED_UTILIZATION
    seconds = (plan.flops + sum(plan.extra_flops.values())) / rate
    return {
        "devices": machine.count,
        "flops_per_token": plan.flops / plan.tokens if plan.tokens else None,
        "seconds": seconds,
        "joules": None if machine.watts is None else machine.watts * machine.count * seconds,
    }


def _closing(rows: Sequence[dict[str, Any]], machine: Machine) -> Iterator[str]:
    """What the estimates rest on."""
    seconds = sum(row["seconds"] or 0.0 for row in rows)
    used = {row["precision"] or machine.precision("auto") for row in rows} or {machine.precision("auto")}
    rates = " and ".join(f"{machine.rate(name) / 1e12:,.3g} TFLOP/s in {name}" for name in sorted(used))
    source = "measured here" if machine.measured else "published"
    yield (
        f"Time: {format_seconds(seconds)} of training, if each {machine.name} reaches {ASSUMED_UTILIZATION:.0%} of its "
        f"{rates} ({source})."
    )
    if machine.watts is None:
        yield "Energy: not reckoned, since the power that this machine takes is not known."
        return
    energy = sum(row["joules"] or 0.0 for row in rows) / 3.6e6
    yield f"Energy: {energy:,.3g} kWh, an estimate: {machine.watts:,.0f} W for each {machine.name} all the time."


def plan_table(planned: dict[str, Any]) -> tuple[Sequence[str], list[list[Any]]]:
    """Columns and rows of a plan for people; memory is that of each device."""
    columns = ("stage", "on", "weights", "tokens", "FLOP/token", "FLOP", "memory", "fits", "time", "kWh")
    rows = [
        [
            row["name"],
            row["devices"],
            _short(row["parameters"]),
            _short(row["tokens"]),
            _short(row["flops_per_token"]),
            _short(row["flops"]),
            _size(sum(row["memory_bytes"].values())),
            row["fits"],
            None if row["seconds"] is None else format_seconds(row["seconds"]),
            None if row["joules"] is None else _short(row["joules"] / 3.6e6),
        ]
        for row in planned["stages"]
    ]
    return columns, rows


def memory_table(planned: dict[str, Any]) -> tuple[Sequence[str], list[list[Any]]]:
    """Columns and rows of the memory of each device by part, for people."""
    parts = ("weights", "gradients", "optimizer", "activations")
    rows = []
    for row in planned["stages"]:
        memory = row["memory_bytes"]
        rest = sum(size for part, size in memory.items() if part not in parts)
        sizes = [_size(memory.get(part, 0)) for part in parts]
        rows.append([row["name"], row["precision"], row["micro_batch"], *sizes, _size(rest)])
    return ("stage", "dtype", "rows", *parts, "other"), rows


def _short(number: float | None) -> str | None:
    """Three digits and a unit: 124M."""
    if number is None:
        return None
    for unit, text in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{text}"
    return f"{number:.2g}"


def _size(size: float) -> str | None:
    return format_bytes(size) if size else None
