"""Records that come as rows with named values: what JSONL, CSV, Parquet and `datasets` have in common."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from llmkit.config.base import Finding, nearest
from llmkit.data.sources.base import Broken, Record, day_of, make_record, readable_copy
from llmkit.data.sources.config import ArrowSource, Columns, CsvSource, DatasetSource, JsonlSource, ParquetSource

RowSource = JsonlSource | CsvSource | ParquetSource | ArrowSource | DatasetSource


def row_record(source: RowSource, row: Mapping[str, Any], path: str, place: str) -> Record:
    """The document in a row.

    Args:
        source: settings of the source, which name the columns.
        row: values by column.
        path: file inside the source.
        place: place of the row in the file, for messages and the document's path: "line 7" is `file:7` there,
            "byte 4096" is `file@4096`.
    """
    text = row.get(source.text)
    if not isinstance(text, str):
        found = "is empty" if text is None and source.text in row else "is not there"
        problem = found if text is None else f"holds {type(text).__name__}, not text"
        copy = readable_copy(as_text(dict(row)))
        return Broken(source.label, path, f"{place}: the column `{source.text}` {problem}", copy)
    metadata = {name: as_text(row[name]) for name in source.metadata if row.get(name) is not None}
    if source.id and row.get(source.id) is not None:
        metadata["id"] = as_text(row[source.id])
    if source.date and row.get(source.date) is not None:
        metadata["date"] = day_of(as_text(row[source.date]))
    known = (_cell(row, source.language_column), _cell(row, source.license_column))
    record = make_record(source, text, row_path(path, place), metadata, *known)
    return replace(record, path=path, detail=f"{place}: {record.detail}") if isinstance(record, Broken) else record


def _cell(row: Mapping[str, Any], column: str | None) -> str | None:
    """What stands in a column; None for one that is not named, or empty."""
    value = None if column is None else row.get(column)
    return None if value is None else as_text(value) or None


def row_path(path: str, place: str) -> str:
    """The path of a row's document: the file with the line or row, or with the byte at which it begins."""
    unit, _, number = place.rpartition(" ")
    return f"{path}@{number}" if unit == "byte" else f"{path}:{number}"


def as_text(value: Any) -> str:
    """A value as text: text as it is, days and moments as ISO 8601 has them, anything else as JSON."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def check_columns(columns: Columns, present: Iterable[str], place: str) -> Iterator[Finding]:
    """A finding for each column that is named in the settings and is not there.

    Args:
        columns: the settings.
        present: names of the columns that are there.
        place: where they are, for the message.
    """
    known = list(present)
    named = [(key, getattr(columns, key)) for key in ("id", "date", "language_column", "license_column")]
    wanted = [("text", columns.text), *((key, name) for key, name in named if name)]
    wanted += [(f"metadata.{index}", name) for index, name in enumerate(columns.metadata)]
    for key, name in wanted:
        if name not in known:
            guess = nearest(name, known)
            listed = f"Columns: {', '.join(known)}."
            hint = f"Did you mean `{guess}`? {listed}" if guess else listed
            yield Finding(f"{place} has no column `{name}`.", key=key, hint=hint)
