"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkit.errors import ConfigError

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The experiment's YAML file.", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value: --set stages.sft.steps=50. Repeatable."),
]
StageOption = Annotated[
    list[str] | None, typer.Option("--stage", "-s", metavar="NAME", help="Only this stage. Repeatable.")
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Do part I of N, each started on its own by a job scheduler; the first one writes the artifact.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A model directory, a stage's directory, a GGUF file, or hf:owner/name.",
        show_default=False,
    ),
]


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Number, from 1, and count of "2/8"; None without one.

    Raises:
        ConfigError: it is none.
    """
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ConfigError(f"`{text}` is no part of a whole.", where="--shard", hint="Write 1/8 for the first of eight.")
    return int(number), int(count)
