"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The experiment's YAML file.", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value: --set stages.sft.steps=50. Repeatable."),
]
StageOption = Annotated[
    list[str] | None, typer.Option("--stage", "-s", metavar="NAME", help="Only this stage. Repeatable.")
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
