"""Commands that look at what is on disk, and that write examples and schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import JsonOption
from llmkit.console import emit_json, say
from llmkit.errors import ConfigError


def inspect(
    path: Annotated[Path, typer.Argument(help="An artifact, a run, a model directory, or a data file.")],
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", "-t", help="Show conversations and rows as its tokens, with loss masks."),
    ] = None,
    row: Annotated[
        int | None,
        typer.Option("--row", min=0, help="Show this row alone, from 0: a document or an example, token by token."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="The split that the row is in.")] = "train",
    as_json: JsonOption = False,
) -> None:
    """Say what an artifact is.

    Its manifest, counts, samples, masks and weights, as far as it has them; or one row of it, token by token.
    """
    from llmkit.pipeline.inspect import inspect_path, inspect_row, show_inspection

    found = inspect_path(path, tokenizer) if row is None else inspect_row(path, row, split, tokenizer)
    if as_json:
        emit_json(found)
    else:
        show_inspection(found)


def report(
    run: Annotated[Path, typer.Argument(help="A run's directory, such as runs/quickstart.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write; RUN/report.html by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML page about a run.

    Self-contained: the chain of stages, results, curves, samples, data, cost. With --json, its content is
    printed instead.
    """
    from llmkit.report.gather import gather_json
    from llmkit.report.page import write_report

    if as_json:
        emit_json(gather_json(run))
        return
    page = write_report(run, output)
    say(f"{page} ({page.stat().st_size / 1e6:.1f} MB); open it in a browser.")


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file instead of printing.")
    ] = None,
) -> None:
    """Print the JSON Schema of a config for editors."""
    import json

    from llmkit.config.schema import experiment_schema
    from llmkit.pipeline.kinds import KINDS
    from llmkit.store.files import write_json_atomic

    made = experiment_schema(KINDS)
    if output is None:
        typer.echo(json.dumps(made, indent=2, ensure_ascii=False))
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(output, made)
        say(f"{output}: the schema of a config; editors find it by the first line of the shipped configs.")


def init(
    name: Annotated[
        str, typer.Argument(help="A shipped example; without --output it is written to NAME.yaml.")
    ] = "quickstart",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the config.")] = None,
) -> None:
    """Copy a shipped example config to edit."""
    from llmkit.config.base import nearest

    examples = example_configs()
    if name not in examples:
        guess = nearest(name, examples)
        hint = f"Did you mean `{guess}`?" if guess else f"Examples: {', '.join(sorted(examples))}."
        raise ConfigError(f"there is no example `{name}`.", hint=hint)
    target = output or Path(f"{name}.yaml")
    if target.exists():
        raise ConfigError(
            "the file is there already and is not overwritten.", where=str(target), hint="Name another by --output."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(examples[name].read_text(encoding="utf-8"), encoding="utf-8")
    say(f"{target}: edit it, then `llmkit run --config {target}`.")


def example_configs() -> dict[str, Path]:
    """The shipped example configs by name: beside the package in a checkout, inside it where it is installed."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    return {}
