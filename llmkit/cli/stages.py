"""Commands that check, plan and run stages of an experiment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.options import ConfigOption, JsonOption, SetOption, ShardOption, StageOption, parse_shard
from llmkit.console import emit_json, emit_table, format_seconds, say
from llmkit.errors import ConfigError
from llmkit.train.launch import Ranks, on_all_ranks, on_one_rank

if TYPE_CHECKING:
    from llmkit.pipeline.run import Pipeline, StageState

STAGE_COMMANDS = {
    "data": "Collect and clean documents; make labelled examples.",
    "tokenizer": "Train a tokenizer.",
    "tokens": "Turn documents into token shards.",
    "pretrain": "Pretrain a causal or masked language model.",
    "finetune": "Fine-tune on conversations or labelled rows.",
    "rlhf": "Train a reward model; align by DPO, PPO, GRPO.",
    "eval": "Measure models side by side.",
}


def run(
    config: ConfigOption, stage: StageOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Run all stages in dependency order.

    Stages that are up to date are skipped, interrupted ones go on where they were.
    """

    def work(ranks: Ranks | None) -> None:
        pipeline = _open(config, overrides, ranks)
        found = pipeline.run(_named(pipeline, stage))
        _close(pipeline, found, as_json)

    on_all_ranks(work)


_SHARDED = ("data", "tokens")
"""Commands whose stages are made of tasks that several machines can share."""


def stage_command(command: str) -> Callable[..., None]:
    """The command that runs the stages of one kind, whose inputs must be up to date."""

    def run_kind(
        config: ConfigOption, stage: StageOption = None, overrides: SetOption = None, as_json: JsonOption = False
    ) -> None:
        on_all_ranks(lambda ranks: work(_open(config, overrides, ranks), config, stage, as_json))

    def run_shard(
        config: ConfigOption,
        stage: StageOption = None,
        overrides: SetOption = None,
        shard: ShardOption = None,
        as_json: JsonOption = False,
    ) -> None:
        part = parse_shard(shard)
        on_all_ranks(lambda ranks: work(_open(config, overrides, ranks, part), config, stage, as_json))

    def work(pipeline: Pipeline, config: Path, stage: list[str] | None, as_json: bool) -> None:
        names = [name for name, kind in pipeline.experiment.kinds.items() if kind.command == command]
        if not names:
            raise ConfigError(f"the config has no stage for `llmkit {command}`.", where=str(config))
        chosen = _named(pipeline, stage)
        if chosen is not None:
            for name in chosen:
                if name not in names:
                    kind = pipeline.experiment.kinds[name]
                    raise ConfigError(
                        f"the stage `{name}` is of kind {kind.name}.", where=pipeline.where(name),
                        hint=f"Run it by `llmkit {kind.command}`.",
                    )  # fmt: skip
        found = pipeline.run(chosen or names, with_dependencies=False)
        if pipeline.is_first:
            _close(pipeline, found, as_json)
        elif as_json:
            emit_json({"run": str(pipeline.directory), "shard": pipeline.shard})

    chosen_command = run_shard if command in _SHARDED else run_kind
    chosen_command.__name__ = command
    return chosen_command


def check(config: ConfigOption, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Say what is wrong, without doing the work."""
    on_one_rank(lambda: _check(config, overrides, as_json))


def _check(config: Path, overrides: list[str] | None, as_json: bool) -> None:
    pipeline = _open(config, overrides)
    findings = pipeline.findings(deep=True)
    rows = [
        {
            "severity": finding.severity,
            "where": pipeline.where(name, finding.key),
            "message": finding.message,
            "hint": finding.hint,
        }
        for name, finding in findings
    ]
    errors = sum(row["severity"] == "error" for row in rows)
    if as_json:
        emit_json({"findings": rows, "errors": errors})
    for row in rows:
        say(f"{row['severity']}: {row['where']}: {row['message']} {row['hint'] or ''}".rstrip())
    stages = len(pipeline.experiment.stages)
    if errors:
        raise SystemExit(2)
    say(f"{config}: {stages} stages, nothing wrong." if not rows else f"{config}: {stages} stages, no errors.")


def plan(
    config: ConfigOption,
    overrides: SetOption = None,
    device: Annotated[
        str | None,
        typer.Option(help="Plan for this GPU, such as h100 or rtx-4090, instead of this machine.", show_default=False),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="How many devices; by default as many as `parallel` asks for.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what training will cost.

    Parameters, tokens, FLOPs, memory by part, and the time and energy expected on this machine or on others.
    """
    on_one_rank(lambda: _plan(config, overrides, device, count, as_json))


def _plan(config: Path, overrides: list[str] | None, device: str | None, count: int | None, as_json: bool) -> None:
    from llmkit.pipeline.plan import memory_table, plan_experiment, plan_table

    pipeline = _open(config, overrides)
    planned = plan_experiment(pipeline, device, count)
    if as_json:
        emit_json(planned)
    else:
        for table in (plan_table, memory_table):
            emit_table(*table(planned))
        for note in planned["notes"]:
            say(note)


def _open(
    config: Path, overrides: list[str] | None, ranks: Ranks | None = None, shard: tuple[int, int] | None = None
) -> Pipeline:
    from llmkit.pipeline.run import Pipeline, load_experiment

    return Pipeline(load_experiment(config, overrides or []), ranks, shard)


def _named(pipeline: Pipeline, stage: list[str] | None) -> list[str] | None:
    from llmkit.config.base import nearest

    for name in stage or []:
        if name not in pipeline.experiment.stages:
            guess = nearest(name, pipeline.experiment.stages)
            hint = f"Did you mean `{guess}`?" if guess else f"Stages: {', '.join(pipeline.experiment.stages)}."
            raise ConfigError(f"the config has no stage `{name}`.", where="--stage", hint=hint)
    return stage or None


def _close(pipeline: Pipeline, found: list[StageState], as_json: bool) -> None:
    """Say what was done; show the results where an evaluation ran."""
    from llmkit.pipeline.results import show_results, stage_summary

    ran = [state for state in found if state.state != "up to date"]
    if as_json:
        emit_json({"run": str(pipeline.directory), "stages": [stage_summary(pipeline, state) for state in found]})
        return
    if not ran:
        say(f"{pipeline.experiment.settings.run}: everything is up to date ({len(found)} stages).")
        return
    show_results(pipeline, [state for state in ran if state.kind == "eval"])
    seconds = sum(stage_summary(pipeline, state)["summary"].get("seconds", 0.0) for state in ran)
    say(
        f"{pipeline.experiment.settings.run}: {len(ran)} of {len(found)} stages ran in {format_seconds(seconds)}; "
        f"`llmkit report {pipeline.directory}` makes a page of it."
    )
