"""Files with one JSON object on each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from llmkit.config.base import Finding
from llmkit.data.sources.base import Broken, Record, Slice, file_slices, readable_copy, surrogate_problem
from llmkit.data.sources.columns import check_columns, row_record
from llmkit.data.sources.config import JsonlSource
from llmkit.data.sources.files import READ_ERRORS, SourceFile, check_files, find_files, open_text

_ENDINGS = (".jsonl", ".ndjson")
_LINES_LOOKED_AT = 100


class JsonlReader:
    """Reads each line as one document; blank lines are no records."""

    def __init__(self, config: JsonlSource) -> None:
        self._config = config

    def check(self) -> Iterator[Finding]:
        """Patterns that mean no file, and columns that the first lines do not have."""
        missing = list(check_files(self._config.files, _ENDINGS))
        yield from missing
        if not missing:
            file = find_files(self._config.files, _ENDINGS)[0]
            rows = [row for _, row in islice(self._rows(file), _LINES_LOOKED_AT)]
            objects = [row for row in rows if isinstance(row, dict)]
            present = dict.fromkeys(name for row in objects for name in row)
            if objects:
                place = f"the beginning of `{file.name}`"
                for finding in check_columns(self._config, present, place):
                    # Metadata may be rare; a text that never comes is a mistake.
                    yield finding if finding.key == "text" else replace(finding, severity="warning")
            for row in rows[:1] if not objects else []:
                problem = row.detail if isinstance(row, Broken) else ""
                yield Finding(f"`{file.name}` does not hold one JSON object on each line: {problem}.", key="files")

    def slices(self) -> list[Slice]:
        """Files together up to some size."""
        return file_slices(find_files(self._config.files, _ENDINGS))

    def read(self, piece: Slice) -> Iterator[Record]:
        """A record for each line that is not blank."""
        for file in piece.files:
            for number, row in self._rows(file):
                if isinstance(row, Broken):
                    yield row
                else:
                    yield row_record(self._config, row, file.name, f"line {number}")

    def _rows(self, file: SourceFile) -> Iterator[tuple[int, dict[str, Any] | Broken]]:
        number = 0
        try:
            with open_text(file.path, self._config.encoding) as stream:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        yield number, self._parse(line, file, number)
        except READ_ERRORS as error:
            detail = f"after line {number}: the file cannot be read on: {error}"
            yield number + 1, Broken(self._config.label, file.name, detail)

    def _parse(self, line: str, file: SourceFile, number: int) -> dict[str, Any] | Broken:
        problem = surrogate_problem(line)
        if problem is None:
            try:
                value = json.loads(line)
                if isinstance(value, dict):
                    return value
                problem = f"a JSON {_NAMES.get(type(value), 'value')}, not an object"
            except (ValueError, RecursionError) as error:
                problem = f"not JSON: {error}"
        return Broken(self._config.label, file.name, f"line {number}: {problem}", readable_copy(line.rstrip("\r\n")))


_NAMES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean"}
