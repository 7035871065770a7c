"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from llmkit.data.sources.base import SLICE_BYTES, Broken, Slice, file_slices
from llmkit.data.sources.batches import batch_rows, is_text
from llmkit.data.sources.files import READ_ERRORS, SourceFile, open_bytes
from llmkit.data.sources.tables import Row, TableForm

_BATCH_ROWS = 1024
_BATCH_BYTES = 1 << 24
_BUFFER_BYTES = 1 << 20
_DICTIONARY_BYTES = 1 << 21
_MOST_TIMES = 50
_ERRORS = (*READ_ERRORS, pa.ArrowException)


class ParquetTable:
    """Each row, read a batch at a time of the columns wanted; large files by their row groups."""

    endings = (".parquet",)
    every_row = True

    def __init__(self, form: TableForm) -> None:
        self._form = form

    def slices(self, files: Iterable[SourceFile]) -> list[Slice]:
        """Row groups together up to some size."""
        return file_slices(files, _group_bounds)

    def columns(self, file: SourceFile) -> Sequence[str] | Broken | None:
        """Names in the file's schema."""
        try:
            with _opened(file) as opened:
                names: list[str] = opened.schema_arrow.names
                return names
        except _ERRORS as error:
            return Broken(self._form.label, file.name, f"is no Parquet file: {error}")

    def rows(self, piece: Slice) -> Iterator[Row | Broken]:
        """Each row."""
        for file in piece.files:
            try:
                with _opened(file) as opened:
                    last = opened.num_row_groups if piece.end is None else piece.end
                    first = 1 + sum(opened.metadata.row_group(group).num_rows for group in range(piece.begin))
                    for group in range(piece.begin, last):
                        yield from self._group(opened, group, file, first)
                        first += opened.metadata.row_group(group).num_rows
            except _ERRORS as error:
                detail = f"the file cannot be read: {error}"
                yield Broken(self._form.label, file.name, detail, reason="unreadable")

    def _group(self, opened: pq.ParquetFile, group: int, file: SourceFile, first: int) -> Iterator[Row | Broken]:
        form = self._form
        names = [name for name in opened.schema_arrow.names if form.columns is None or name in form.columns]
        number = first
        try:
            rows = _rows_at_once(opened, group)
            for batch in opened.iter_batches(rows, row_groups=[group], columns=names, use_threads=False):
                yield from batch_rows(batch, form, file.name, number)
                number += batch.num_rows
        except _ERRORS as error:
            last = first + opened.metadata.row_group(group).num_rows - 1
            detail = f"rows {number} to {last}: cannot be read: {error}"
            yield Broken(form.label, file.name, detail, reason="unreadable")


@contextmanager
def _opened(file: SourceFile) -> Iterator[pq.ParquetFile]:
    with open_bytes(file.path) as stream:
        found = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        dictionaries = _dictionary_columns(found)
        if dictionaries:
            stream.seek(0)
            found = pq.ParquetFile(
                stream,
                buffer_size=_BUFFER_BYTES,
                pre_buffer=False,
                read_dictionary=dictionaries,
                metadata=found.metadata,
            )
        with found:
            yield found


def _dictionary_columns(opened: pq.ParquetFile) -> list[str]:
    """Columns of text in which a few long values may stand for many rows: to be read as such, and not repeated."""
    metadata = opened.metadata
    texts = [field.name for field in opened.schema_arrow if is_text(field.type)]
    found = {
        chunk.path_in_schema
        for group in range(metadata.num_row_groups)
        for index in range(metadata.num_columns)
        if _may_repeat(chunk := metadata.row_group(group).column(index))
    }
    return [name for name in texts if name in found]


def _may_repeat(chunk: pq.ColumnChunkMetaData) -> bool:
    # Reading unlike values as a dictionary takes several times as long, so it is done only where all that is stored
    # could be one (writers give up at 1 MiB of values), where it is larger, or shrinks as texts do not.
    if not chunk.has_dictionary_page:
        return False
    dictionary = chunk.data_page_offset - (chunk.dictionary_page_offset or 0)
    small = chunk.total_uncompressed_size <= _DICTIONARY_BYTES + 4 * chunk.num_values
    return bool(
        small
        or dictionary > _DICTIONARY_BYTES
        or chunk.total_uncompressed_size > _MOST_TIMES * chunk.total_compressed_size
    )


def _rows_at_once(opened: pq.ParquetFile, group: int) -> int:
    metadata = opened.metadata.row_group(group)
    rows: int = _BATCH_BYTES * metadata.num_rows // max(metadata.total_byte_size, 1)
    return max(1, min(_BATCH_ROWS, rows))


def _group_bounds(file: SourceFile) -> list[int]:
    """Numbers of the row groups at which a file is cut."""
    try:
        with open_bytes(file.path) as stream, pq.ParquetFile(stream) as opened:
            metadata = opened.metadata
            bounds, room = [0], SLICE_BYTES
            for group in range(metadata.num_row_groups):
                row_group = metadata.row_group(group)
                size = sum(row_group.column(index).total_compressed_size for index in range(row_group.num_columns))
                if size > room and bounds[-1] != group:
                    bounds.append(group)
                    room = SLICE_BYTES
                room -= size
            return [*bounds, int(metadata.num_row_groups)]
    except _ERRORS:
        # What is wrong is told when the file is read.
        return [0, file.size]
