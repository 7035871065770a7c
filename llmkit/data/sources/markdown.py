"""Files of Markdown, with metadata in their front matter."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import Any

import yaml

from llmkit.config.base import Finding
from llmkit.data.sources.base import Broken, Record, Slice, day_of, file_slices, make_record
from llmkit.data.sources.config import MarkdownSource
from llmkit.data.sources.files import SourceFile, check_files, find_files
from llmkit.data.sources.whole import decode_whole, read_whole

_ENDINGS = (".md", ".markdown", ".mdown", ".mkd")
_FRONT = re.compile(r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_FRONT_CHARACTERS = 1 << 16
_SCALARS = (str, int, float, bool, datetime.date)


class MarkdownReader:
    """Reads each file as one document: its text as it is, its front matter as metadata."""

    def __init__(self, config: MarkdownSource) -> None:
        self._config = config

    def check(self) -> Iterator[Finding]:
        """Patterns that mean no file."""
        return check_files(self._config.files, _ENDINGS)

    def slices(self) -> list[Slice]:
        """Files together up to some size."""
        return file_slices(find_files(self._config.files, _ENDINGS))

    def read(self, piece: Slice) -> Iterator[Record]:
        """A document for each file, `Broken` for one that cannot be read or decoded."""
        return map(self._record, piece.files)

    def _record(self, file: SourceFile) -> Record:
        config = self._config
        data = read_whole(config.label, file, config.max_bytes)
        if isinstance(data, Broken):
            return data
        text = decode_whole(config.label, file, data, config.encoding)
        if isinstance(text, Broken):
            return text
        metadata, body = split_front_matter(text)
        if "date" in metadata:
            metadata["date"] = day_of(metadata["date"])
        return make_record(config, body, file.name, metadata, metadata.get("lang") or metadata.get("language"))


def split_front_matter(text: str) -> tuple[dict[str, str], str]:
    """The metadata at the head of a text, and the text after it.

    Values that are text, numbers, dates, or lists of these (joined by commas) are kept. What begins like front matter
    and is no YAML mapping, such as a text between two rules, is part of the text.
    """
    found = _FRONT.match(text, 0, _FRONT_CHARACTERS)
    if found is None:
        return {}, text
    try:
        values = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, text
    if not isinstance(values, dict):
        return {}, text
    kept = {str(key): _written(value) for key, value in values.items() if isinstance(key, _SCALARS)}
    return {key: value for key, value in kept.items() if value}, text[found.end() :].lstrip("\r\n")


def _written(value: Any) -> str:
    if isinstance(value, _SCALARS):
        return str(value)
    if isinstance(value, list):
        return ", ".join(str(item) for item in value if isinstance(item, _SCALARS))
    return ""
