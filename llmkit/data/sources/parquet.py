"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from llmkit.config.base import Finding
from llmkit.data.sources.base import Broken, Record, Slice, file_slices
from llmkit.data.sources.columns import check_columns, row_record
from llmkit.data.sources.config import ParquetSource
from llmkit.data.sources.files import SourceFile, check_files, find_files

_ENDINGS = (".parquet",)
_BATCH_ROWS = 256
_ERRORS = (OSError, pa.ArrowException)


class ParquetReader:
    """Reads each row as one document, no more than a row group of a file at a time."""

    def __init__(self, config: ParquetSource) -> None:
        self._config = config

    def check(self) -> Iterator[Finding]:
        """Patterns that mean no file, and columns that a file does not have."""
        missing = list(check_files(self._config.files, _ENDINGS))
        yield from missing
        if not missing:
            file = find_files(self._config.files, _ENDINGS)[0]
            try:
                names = pq.read_schema(file.path).names
            except _ERRORS as error:
                yield Finding(f"`{file.name}` is no Parquet file: {error}.", key="files")
            else:
                yield from check_columns(self._config, names, f"`{file.name}`")

    def slices(self) -> list[Slice]:
        """Files together up to some size."""
        return file_slices(find_files(self._config.files, _ENDINGS))

    def read(self, piece: Slice) -> Iterator[Record]:
        """A record for each row."""
        for file in piece.files:
            yield from self._read_file(file)

    def _read_file(self, file: SourceFile) -> Iterator[Record]:
        try:
            with pq.ParquetFile(file.path) as opened:
                first = 1
                for group in range(opened.num_row_groups):
                    yield from self._read_group(opened, group, file, first)
                    first += opened.metadata.row_group(group).num_rows
        except _ERRORS as error:
            yield Broken(self._config.label, file.name, f"the file cannot be read: {error}")

    def _read_group(self, opened: pq.ParquetFile, group: int, file: SourceFile, first: int) -> Iterator[Record]:
        config = self._config
        wanted = {config.text, *config.metadata, *([config.id] if config.id else [])}
        names = [name for name in opened.schema_arrow.names if name in wanted]
        number = first
        try:
            for batch in opened.iter_batches(_BATCH_ROWS, row_groups=[group], columns=names, use_threads=False):
                for row in batch.to_pylist():
                    yield row_record(config, row, file.name, f"row {number}")
                    number += 1
        except _ERRORS as error:
            last = first + opened.metadata.row_group(group).num_rows - 1
            yield Broken(config.label, file.name, f"rows {number} to {last}: cannot be read: {error}")
