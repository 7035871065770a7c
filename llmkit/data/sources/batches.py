"""Rows of Arrow's record batches, which Parquet files are read as, some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llmkit.data.sources.base import Broken, readable_copy
from llmkit.data.sources.tables import Row, TableForm

_ROWS = 256
_BYTES = 1 << 24


def batch_rows(batch: pa.RecordBatch, form: TableForm, path: str, first: int) -> Iterator[Row | Broken]:
    """The rows, turned into Python's objects a few at a time: some 16 MiB of text, or one row.

    Dictionaries, which may hold few long texts for many rows, are looked up for those few rows alone.

    Args:
        batch: the rows.
        form: of the table.
        path: the file's name in documents.
        first: number of the first row.
    """
    lengths = _text_bytes(batch)
    begin = 0
    while begin < batch.num_rows:
        if lengths[begin] > form.max_bytes:
            detail = f"row {first + begin}: the row is longer than {form.max_bytes:,} bytes"
            yield Broken(form.label, path, detail, reason="too large")
            begin += 1
            continue
        end, size = begin, 0
        while end < min(begin + _ROWS, batch.num_rows) and (end == begin or size + lengths[end] <= _BYTES):
            if lengths[end] > form.max_bytes:
                break
            size += lengths[end]
            end += 1
        yield from _rows(_plain(batch.slice(begin, end - begin)), form, path, first + begin)
        begin = end


def _rows(batch: pa.RecordBatch, form: TableForm, path: str, first: int) -> Iterator[Row | Broken]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            detail = f"row {first}: byte {error.start:,}: not valid {error.encoding} ({error.reason})"
            yield Broken(form.label, path, detail, readable_copy(error.object), "encoding")
            return
        for index in range(batch.num_rows):
            yield from _rows(batch.slice(index, 1), form, path, first + index)
    else:
        for number, values in enumerate(rows, start=first):
            yield Row(path, f"row {number}", values)


def _text_bytes(batch: pa.RecordBatch) -> list[int]:
    """Bytes of text in each row, as far as columns are text or bytes."""
    total: Any = pa.array([0] * batch.num_rows, pa.int64())
    for column in batch.columns:
        dictionary = isinstance(column, pa.DictionaryArray)
        values = column.dictionary if dictionary else column
        if is_text(values.type):
            lengths = pc.cast(pc.binary_length(values), pa.int64())
            if dictionary:
                lengths = lengths.take(column.indices)
            total = pc.add(total, pc.fill_null(lengths, 0))
    found: list[int] = total.to_pylist()
    return found


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch without dictionaries."""
    columns = [
        column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def is_text(kind: Any) -> bool:
    """Whether a column of this type holds texts or bytes."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )
