"""Where a chat template comes from: a built-in one by name, a file, or its text in the settings."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from llmkit.config.base import Finding, Input, nearest
from llmkit.tokenizer.special import TURN_END, TURN_START

BUILT_IN = {"chatml": (TURN_START, TURN_END)}
"""Names of the built-in templates, and the special tokens that each writes."""
_FILE = ".jinja"


def template_inputs(key: str, value: str | None) -> list[Input]:
    """The input that a template is, where `value` names a file."""
    return [Input(key, value, ("file",))] if value is not None and value.endswith(_FILE) else []


def check_template_name(key: str, value: str | None) -> Iterator[Finding]:
    """Whether `value` can be a template at all."""
    if value is None or value in BUILT_IN or value.endswith(_FILE) or "{{" in value or "{%" in value:
        return
    guess = nearest(value, BUILT_IN)
    kinds = f"Built in: {', '.join(BUILT_IN)}. A file's name ends in {_FILE}; a template's text contains {{{{ or {{%."
    hint = f"Did you mean `{guess}`? {kinds}" if guess else kinds
    yield Finding(f"`{value}` is no chat template.", key=key, hint=hint)


def read_template(value: str, file: Path | None) -> str:
    """The template's text.

    Args:
        value: what the settings say.
        file: where the input of `template_inputs` was found, if there is one.
    """
    if value in BUILT_IN:
        folder = resources.files("llmkit.tokenizer").joinpath("chat_templates")
        return folder.joinpath(f"{value}{_FILE}").read_text(encoding="utf-8")
    return value if file is None else file.read_text(encoding="utf-8")
