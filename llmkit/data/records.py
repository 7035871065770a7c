"""Records in files: JSONL, JSON, CSV, TSV and Parquet, plain or compressed, one mapping at a time with its place.

The place ("rows.jsonl:12") is what every later complaint about a record names.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from llmkit.data.sources.files import READ_ERRORS, ending_of, name_of, open_raw, open_text
from llmkit.errors import DataError

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A mapping and where it stands.

    Args:
        place: file with line, or with row or item number where lines mean nothing.
        values: the mapping; empty where there is a problem.
        problem: why the record cannot be read, where it cannot; those after it can.
    """

    place: str
    values: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def read_records(path: str | Path, *, header: bool = True) -> Iterator[FileRecord]:
    """Records of a file, in order, reading a piece at a time (a JSON array is read whole).

    Args:
        path: the file, or a URL of it; the ending of its name tells the format.
        header: whether the first line of a CSV or TSV file names the columns; without it they are "0", "1", ...

    Raises:
        DataError: the file is of no known format, or cannot be read from some place on.
    """
    ending = ending_of(name_of(path))
    if ending not in ENDINGS:
        known = ", ".join(ENDINGS)
        raise DataError("the file's name does not tell its format.", where=str(path), hint=f"Known endings: {known}.")
    try:
        if ending == ".parquet":
            yield from _parquet(path)
        else:
            with open_text(path, "utf-8") as stream:
                yield from _text_records(path, stream, ending, header)
    except FileNotFoundError:
        raise DataError("there is no such file.", where=str(path)) from None
    except READ_ERRORS as error:
        raise DataError(f"the file cannot be read: {error}.", where=str(path)) from None


def _text_records(path: str | Path, stream: IO[str], ending: str, header: bool) -> Iterator[FileRecord]:
    if ending in (".jsonl", ".ndjson"):
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _json_record(line, f"{path}:{number}")
    elif ending == ".json":
        yield from _json_array(path, stream)
    else:
        yield from _delimited(path, stream, ending, header)


def _json_record(line: str, place: str) -> FileRecord:
    try:
        return _mapping(json.loads(line), place)
    except (ValueError, RecursionError) as error:
        return FileRecord(place, problem=f"this is not JSON: {error}.")


def _mapping(value: Any, place: str) -> FileRecord:
    if isinstance(value, dict):
        return FileRecord(place, value)
    names = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "true or false"}
    return FileRecord(place, problem=f"a record is an object with keys, not {names.get(type(value), 'null')}.")


def _json_array(path: str | Path, stream: IO[str]) -> Iterator[FileRecord]:
    try:
        found = json.load(stream)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"this is not JSON: {error}.", where=str(path), hint="A file with one object on each line is named .jsonl."
        ) from None
    if not isinstance(found, list):
        raise DataError("a .json file of records holds one array of objects.", where=str(path))
    for number, value in enumerate(found, start=1):
        yield _mapping(value, f"{path}: item {number}")


def _delimited(path: str | Path, stream: IO[str], ending: str, header: bool) -> Iterator[FileRecord]:
    # The module's default of 128 KiB is less than a long text.
    csv.field_size_limit(1 << 26)
    if ending == ".tsv":
        # Nothing is escaped in a TSV file: a quotation mark in it is text.
        rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        rows = csv.reader(stream, strict=True)
    names: list[str] | None = None
    while True:
        place = f"{path}:{rows.line_num + 1}"
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield FileRecord(place, problem=f"the row cannot be read: {error}.")
            continue
        if names is None:
            names = cells if header else [str(index) for index in range(len(cells))]
            if header:
                continue
        if len(cells) == len(names):
            yield FileRecord(place, dict(zip(names, cells, strict=True)))
        elif cells:
            yield FileRecord(place, problem=f"the row has {len(cells)} cells where the first row has {len(names)}.")


def _parquet(path: str | Path) -> Iterator[FileRecord]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with open_raw(path) as stream, pq.ParquetFile(stream) as file:
            for batch in file.iter_batches(batch_size=256, use_threads=False):
                for values in batch.to_pylist():
                    number += 1
                    yield FileRecord(f"{path}: row {number}", values)
    except pa.ArrowException as error:
        raise DataError(f"the file cannot be read after row {number}: {error}.", where=str(path)) from None
