"""`llmkit`: the commands."""

from __future__ import annotations

import typer

from llmkit.cli import artifacts, formats, stages, use
from llmkit.cli.guard import guarded

app = typer.Typer(
    name="llmkit",
    help="From raw text to an aligned, evaluated language model: a chain of stages driven by one YAML file.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

CHAIN = "The chain"
STAGES = "One kind of stage"
USE = "Using models"
LOOK = "Looking"

app.command("run", rich_help_panel=CHAIN)(guarded(stages.run))
app.command("check", rich_help_panel=CHAIN)(guarded(stages.check))
app.command("plan", rich_help_panel=CHAIN)(guarded(stages.plan))
for name, text in stages.STAGE_COMMANDS.items():
    app.command(name, help=text, rich_help_panel=STAGES)(guarded(stages.stage_command(name)))
app.command("generate", rich_help_panel=USE)(guarded(use.generate))
app.command("chat", rich_help_panel=USE)(guarded(use.chat))
app.command("import", rich_help_panel=USE)(guarded(formats.import_model))
app.command("export", rich_help_panel=USE)(guarded(formats.export_model))
app.command("inspect", rich_help_panel=LOOK)(guarded(artifacts.inspect))
app.command("report", rich_help_panel=LOOK)(guarded(artifacts.report))
app.command("init", rich_help_panel=CHAIN)(guarded(artifacts.init))
app.command("schema", rich_help_panel=CHAIN)(guarded(artifacts.schema))


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and stop.")
) -> None:
    if version:
        from llmkit import __version__

        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Entry point of the console script."""
    app()
