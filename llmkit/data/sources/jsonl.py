"""Files with one JSON object on each line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from llmkit.data.sources.base import SLICE_BYTES, Broken, Slice, file_slices, readable_copy, surrogate_problem
from llmkit.data.sources.files import READ_ERRORS, SourceFile
from llmkit.data.sources.lines import lines, part_bounds
from llmkit.data.sources.tables import Row, TableForm

_LINES_LOOKED_AT = 100
_NAMES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean"}


class JsonlTable:
    """Each line is a row; blank lines are none. Large files that are not compressed are read in parts.

    Rows are known by their lines; in a file of several parts, where the lines before are not counted, by the byte at
    which they begin.
    """

    endings = (".jsonl", ".ndjson")
    every_row = False

    def __init__(self, form: TableForm) -> None:
        self._form = form

    def slices(self, files: Iterable[SourceFile]) -> list[Slice]:
        """Ranges of bytes."""
        return file_slices(files, lambda file: part_bounds(file, self._form.encoding, SLICE_BYTES))

    def columns(self, file: SourceFile) -> Sequence[str] | Broken | None:
        """Names in the first lines."""
        rows = list(islice(self.rows(Slice(file.name, (file,))), _LINES_LOOKED_AT))
        objects = [row.values for row in rows if isinstance(row, Row)]
        if objects:
            return list(dict.fromkeys(name for values in objects for name in values))
        return next((row for row in rows if isinstance(row, Broken)), None)

    def rows(self, piece: Slice) -> Iterator[Row | Broken]:
        """A row for each line that is not blank."""
        for file in piece.files:
            yield from self._file(file, piece)

    def _file(self, file: SourceFile, piece: Slice) -> Iterator[Row | Broken]:
        form = self._form
        number, place = 0, "line 0"
        try:
            found = lines(file, form.encoding, form.max_bytes, piece.begin, piece.end)
            for number, (start, line) in enumerate(found, start=1):
                place = f"line {number}" if piece.end is None else f"byte {start}"
                if line is None:
                    detail = f"{place}: the line is longer than {form.max_bytes:,} bytes"
                    yield Broken(form.label, file.name, detail, reason="too large")
                elif line and not line.isspace():
                    yield self._row(line, file.name, place)
        except READ_ERRORS as error:
            detail = f"after {place}: the file cannot be read on: {error}"
            yield Broken(form.label, file.name, detail, reason="unreadable")

    def _row(self, line: bytes, path: str, place: str) -> Row | Broken:
        text = line.decode("utf-8", "surrogateescape")
        problem = surrogate_problem(text)
        if problem is not None:
            return Broken(self._form.label, path, f"{place}: {problem}", readable_copy(line.rstrip()), "encoding")
        try:
            value: Any = json.loads(text)
            if isinstance(value, dict):
                return Row(path, place, value)
            problem = f"a JSON {_NAMES.get(type(value), 'value')}, not an object"
        except (ValueError, RecursionError) as error:
            problem = f"not JSON: {error}"
        return Broken(self._form.label, path, f"{place}: {problem}", readable_copy(text.rstrip()))
