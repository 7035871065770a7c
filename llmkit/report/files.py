"""Reading what a run left on disk without trusting it: a damaged file costs its own section and not the page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none or it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@dataclass
class Unreadable:
    """Counts the lines of a JSONL file that are no JSON objects; a last line cut short is not counted."""

    lines: int = 0


def read_lines(path: Path, unreadable: Unreadable | None = None) -> Iterator[dict[str, Any]]:
    """The JSON objects of a JSONL file in order; none where there is no file.

    Args:
        path: the file. NaN and Infinity are read as Python writes them.
        unreadable: counts the lines passed over.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="\n") as stream:
        for line in stream:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                yield value
            elif unreadable is not None and line.endswith("\n"):
                unreadable.lines += 1


def as_number(value: Any) -> float | None:
    """A number, NaN and infinities included, as a float; None for anything else (booleans are no numbers here)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def as_finite(value: Any) -> float | None:
    """A finite number as a float, or None."""
    number = as_number(value)
    return number if number is not None and math.isfinite(number) else None


def as_mapping(value: Any) -> dict[str, Any]:
    """A mapping, or an empty one in place of anything else."""
    return dict(value) if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """A list, or an empty one in place of anything else."""
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    """Text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
