"""What is looked at in `tokenizer.json` and `tokenizer_config.json` before `tokenizers` is given them.

That library trusts its files: an id of four billion makes it reserve a table of that length, and a normalizer can make
a gigabyte of a word. Where memory ends, it ends the process. So what would be refused too late is refused here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmkit.errors import ArtifactError

_LONGEST_FILE = 200_000_000
_LARGEST_ID = 1 << 24
_MOST_SPECIAL = 20_000
_LONGEST_TOKEN = 10_000
_MOST_GROWTH = 1000


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object, each of its keys once, all of its text valid Unicode; raises ArtifactError for anything else."""
    text = read_text(file)
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"this is no valid JSON: {error}.", where=str(file)) from None
    if not isinstance(value, dict):
        raise ArtifactError("this must hold a JSON object.", where=str(file))
    return value


def read_text(file: Path) -> str:
    """A text in UTF-8; raises ArtifactError where it is none, or longer than any tokenizer's."""
    try:
        if not file.is_file() or file.stat().st_size > _LONGEST_FILE:
            raise ValueError(f"it is no file, or longer than {_LONGEST_FILE:,} bytes")
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"this cannot be read: {error}.", where=str(file)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is there twice")
    return value


def check_definition(definition: Mapping[str, Any], where: str) -> None:
    """Refuse a `tokenizer.json` with which `tokenizers` would take memory without end.

    Raises:
        ArtifactError: ids or tokens beyond any model's, or a normalizer that makes texts much longer.
    """
    problem = next(_problems(definition), None)
    if problem is not None:
        raise ArtifactError(f"the tokenizer cannot be read: {problem}.", where=where)


def _problems(definition: Mapping[str, Any]) -> Iterator[str]:
    model, added = definition.get("model"), definition.get("added_tokens") or []
    if not isinstance(model, Mapping) or not isinstance(added, list):
        yield "it has no model, or no list of added tokens"
        return
    vocabulary = model.get("vocab")
    numbers = list(vocabulary.values()) if isinstance(vocabulary, Mapping) else []
    numbers += [token.get("id") for token in added if isinstance(token, Mapping)]
    if any(isinstance(number, int) and number >= _LARGEST_ID for number in numbers):
        yield f"it has an id of {_LARGEST_ID:,} or above"
    if len(added) > _MOST_SPECIAL:
        yield f"it adds more than {_MOST_SPECIAL:,} tokens to its vocabulary"
    if any(len(str(token.get("content"))) > _LONGEST_TOKEN for token in added if isinstance(token, Mapping)):
        yield f"an added token is longer than {_LONGEST_TOKEN:,} characters"
    growth = 1
    for key in ("normalizer", "pre_tokenizer", "decoder"):
        for step in _steps(definition.get(key)):
            growth *= _growth(step)
            if step.get("type") == "Precompiled" and not _is_whole(step.get("precompiled_charsmap")):
                yield "its table of characters is damaged"
    if growth > _MOST_GROWTH:
        yield f"its normalizer can make a text more than {_MOST_GROWTH:,} times as long"


def _steps(value: Any) -> Iterator[Mapping[str, Any]]:
    """A step and the steps in it; sequences may be nested."""
    waiting = [value]
    while waiting:
        step = waiting.pop()
        if isinstance(step, Mapping):
            yield step
            waiting += [part for parts in step.values() if isinstance(parts, list) for part in parts]


def _growth(step: Mapping[str, Any]) -> int:
    """How many times longer a step can make a text of one character."""
    written = [step.get(key) for key in ("content", "prepend", "replacement", "prefix", "suffix")]
    longest = max((len(text) for text in written if isinstance(text, str)), default=1)
    pattern = step.get("pattern")
    found = pattern.get("String") if isinstance(pattern, Mapping) else None
    return max(1, -(-longest // max(1, len(found) if isinstance(found, str) else 1)))


def _is_whole(table: Any) -> bool:
    """Whether a normalizer's table is as long as it says: four bytes with the length of its first part come first."""
    if not isinstance(table, str):
        return False
    try:
        content = base64.b64decode(table, validate=True)
    except ValueError:
        return False
    return len(content) >= 4 and int.from_bytes(content[:4], "little") <= len(content) - 4


def check_settings(settings: Mapping[str, Any], roles: tuple[str, ...], where: str) -> None:
    """Refuse settings whose special tokens or chat template are no text.

    Args:
        settings: contents of `tokenizer_config.json`, the chat template as text.
        roles: keys that name special tokens.
        where: the file.

    Raises:
        ArtifactError: naming the key.
    """
    for key in roles:
        value = settings.get(key)
        text = value.get("content") if isinstance(value, Mapping) else value
        if value and (not isinstance(text, str) or len(text) > _LONGEST_TOKEN):
            raise ArtifactError(f"{key} is no token's text.", where=where)
    if not isinstance(settings.get("chat_template"), str | None):
        raise ArtifactError("chat_template is no text.", where=where)
