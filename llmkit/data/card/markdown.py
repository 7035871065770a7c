"""Pieces of Markdown: tables, lists, code; whatever a text holds, it stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from llmkit.console import format_cell

_LISTED = 12
"""Values of a list that are shown; the rest is counted."""


def plain(text: str) -> str:
    """A text on one line, in which nothing is markup; a table takes care of the bars."""
    return re.sub(r"([\\`*_\[\]<>#~$])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """A text as code, on one line."""
    line = " ".join(text.split())
    fence = _fence(line, 1)
    padding = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def block(text: str, language: str) -> str:
    """Lines of code, the last one ended."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text}{fence}"


def _fence(text: str, least: int) -> str:
    """A row of backticks that is longer than any inside."""
    return "`" * max(least, max(map(len, re.findall("`+", text)), default=0) + 1)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; cells that are text are Markdown, numbers stand to the right."""
    body = [list(row) for row in rows]
    numeric = [
        bool(body) and all(isinstance(row[index], (int, float)) or row[index] is None for row in body)
        for index in range(len(columns))
    ]
    lines = [columns, ["---:" if right else "---" for right in numeric]]
    lines += [[format_cell(value).replace("|", "\\|") for value in row] for row in body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def bullets(items: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {item}" for item in items)


def settings_line(settings: dict[str, Any]) -> str:
    """Settings as code behind one another (`min_words: 50`, `words: "english"`), without those that are null."""
    return ", ".join(code(f"{name}: {_value(value)}") for name, value in settings.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, list) and len(value) > _LISTED:
        shown = json.dumps(value[:_LISTED], ensure_ascii=False)
        return f"{shown[:-1]}, and {len(value) - _LISTED:,} more]"
    return json.dumps(value, ensure_ascii=False)
