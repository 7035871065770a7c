"""Turning what pydantic found into sentences with file, line, dotted key and the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llmkit.config.base import Finding, nearest
from llmkit.config.yaml import KeyPath, Source
from llmkit.errors import ConfigError

_WORDS = {
    "string_type": "a string", "int_type": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "list_type": "a list", "dict_type": "a mapping", "model_type": "a mapping", "model_attributes_type": "a mapping",
    "int_from_float": "a whole number",
}  # fmt: skip
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'")


def findings_of(error: ValidationError, data: Any, path: KeyPath) -> list[tuple[KeyPath, Finding]]:
    """Each problem of a validation error: its place below `path`, and a finding in words.

    Args:
        error: what pydantic raised while validating `data`.
        data: the raw value validated, used to tell keys from the union tags that pydantic puts into locations.
        path: where `data` stands in the file.
    """
    found: list[tuple[KeyPath, Finding]] = []
    for details in error.errors(include_url=False):
        place = (*path, *_locate(details, data))
        if details["type"] == "unknown_keys":
            context = details.get("ctx", {})
            for key in context["keys"]:
                guess = nearest(key, context["valid"])
                hint = f"Did you mean `{guess}`?" if guess else f"Known keys: {', '.join(context['valid'])}."
                found.append(((*place, key), Finding(f"`{key}` is not a known key.", hint=hint)))
        else:
            message, hint_or_none = _sentence(details)
            found.append((place, Finding(message, hint=hint_or_none)))
    return found


def _locate(details: ErrorDetails, data: Any) -> KeyPath:
    """Where an error stands in `data`: its location without the union tags that pydantic puts between the keys."""
    missing = details["type"] == "missing"
    parts = details["loc"][:-1] if missing else details["loc"]
    readings = list(_readings(parts, data))
    # A tag may be spelt like a key beside it: what the error is about tells them apart.
    path = next((path for path, value in readings if value is details["input"]), readings[0][0])
    return (*path, details["loc"][-1]) if missing else path


def _readings(parts: KeyPath, data: Any) -> Iterator[tuple[KeyPath, Any]]:
    """Paths that a location may mean, with what stands there; the one with the fewest tags comes first."""
    if not parts:
        yield (), data
        return
    part, rest = parts[0], parts[1:]
    here = _is_key(part, data)
    if here:
        for path, value in _readings(rest, data[part]):
            yield (part, *path), value
    if not here or isinstance(part, str):
        yield from _readings(rest, data)


def _is_key(part: str | int, data: Any) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


def _sentence(details: ErrorDetails) -> tuple[str, str | None]:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    shown = _shown(value)
    if kind == "missing":
        return "this key is needed and not there.", None
    if kind in _WORDS:
        hint = "Numbers stand without quotes." if isinstance(value, str) and "number" in _WORDS[kind] else None
        return f"{shown} is not {_WORDS[kind]}.", hint
    if kind in ("literal_error", "union_tag_invalid", "enum"):
        expected = str(context.get("expected") or context.get("expected_tags") or "")
        valid = [text.replace("\\'", "'") for text in _QUOTED.findall(expected)]
        wrong = context.get("tag", value)
        guess = nearest(wrong, valid) if isinstance(wrong, str) else None
        choices = ", ".join(valid) or expected
        return f"{_shown(wrong)} is not one of: {choices}.", f"Did you mean `{guess}`?" if guess else None
    if kind == "union_tag_not_found":
        key = str(context.get("discriminator", "kind")).strip("'")
        return f"the key `{key}`, which says what this is, is missing.", None
    text = str(context["error"]) if kind == "value_error" and "error" in context else details["msg"]
    text = text[0].lower() + text[1:]
    text = text if text.endswith((".", "?", "!")) else text + "."
    if kind.startswith(("greater_than", "less_than", "string_", "too_", "multiple_of", "finite")):
        text = f"{shown} is out of range: {text}"
    return text, None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def config_error(source: Source, problems: list[tuple[KeyPath, Finding]]) -> ConfigError:
    """One error that names every problem, the first as its own message."""
    (path, first), rest = problems[0], problems[1:]
    hint = first.hint
    if rest:
        others = [f"{source.where(place)}: {finding.message} {finding.hint or ''}".rstrip() for place, finding in rest]
        hint = "\n".join([*([hint] if hint else []), *others])
    return ConfigError(first.message, where=source.where(path), hint=hint)
