"""Tables in files: what JSONL, CSV, Parquet and Arrow have in common, and reading each row as a document."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from llmkit.config.base import Finding
from llmkit.data.sources.base import Broken, Record, Slice
from llmkit.data.sources.columns import check_columns, row_record
from llmkit.data.sources.config import ArrowSource, CsvSource, JsonlSource, ParquetSource
from llmkit.data.sources.files import SourceFile, check_files, find_files

TableSource = JsonlSource | CsvSource | ParquetSource | ArrowSource


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Args:
        path: the file's name in documents.
        place: where it is in the file: "line 7", "row 7", or "byte 4096" in a file that is read in parts.
        values: by column.
    """

    path: str
    place: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TableForm:
    """How tables are written.

    Args:
        label: name of the source, for broken records.
        encoding: of formats that are text.
        delimiter: between the cells of CSV; None for what the file's name says.
        max_bytes: of the largest row.
        columns: the columns that are wanted, where a format can leave out the others; None for all.
    """

    label: str
    encoding: str = "utf-8"
    delimiter: str | None = None
    max_bytes: int = 1 << 26
    columns: tuple[str, ...] | None = None


class Table(Protocol):
    """Files of one format."""

    endings: tuple[str, ...]
    every_row: bool
    """Whether each row has all columns."""

    def slices(self, files: Iterable[SourceFile]) -> list[Slice]:
        """The parts that can be read side by side."""
        ...

    def columns(self, file: SourceFile) -> Sequence[str] | Broken | None:
        """Names of the columns; what is wrong with the file; or None where nothing tells them."""
        ...

    def rows(self, piece: Slice) -> Iterator[Row | Broken]:
        """The rows of a part, holding few of them in memory."""
        ...


_TABLES = {
    "jsonl": "llmkit.data.sources.jsonl:JsonlTable",
    "csv": "llmkit.data.sources.csv:CsvTable",
    "parquet": "llmkit.data.sources.parquet:ParquetTable",
    "arrow": "llmkit.data.sources.arrow:ArrowTable",
}


def open_table(kind: str, form: TableForm) -> Table:
    """The table of a kind of source."""
    module, _, name = _TABLES[kind].partition(":")
    table: Table = getattr(importlib.import_module(module), name)(form)
    return table


class TableReader:
    """Reads each row as one document."""

    def __init__(self, config: TableSource) -> None:
        self._config = config
        columns = (config.id, config.date, config.language_column, config.license_column)
        wanted = (config.text, *config.metadata, *filter(None, columns))
        encoding = config.encoding if isinstance(config, JsonlSource | CsvSource) else "utf-8"
        delimiter = config.delimiter if isinstance(config, CsvSource) else None
        form = TableForm(config.label, encoding, delimiter, config.max_bytes, tuple(dict.fromkeys(wanted)))
        self._table = open_table(config.kind, form)

    def check(self) -> Iterator[Finding]:
        """Patterns that mean no file, and columns that the first file does not have."""
        missing = list(check_files(self._config.files, self._table.endings))
        yield from missing
        if missing:
            return
        file = find_files(self._config.files, self._table.endings)[0]
        names = self._table.columns(file)
        if isinstance(names, Broken):
            yield Finding(f"`{file.name}`: {names.detail}.", key="files")
        elif names is not None:
            place = f"`{file.name}`" if self._table.every_row else f"the beginning of `{file.name}`"
            for finding in check_columns(self._config, names, place):
                # Metadata may be rare; a text that never comes is a mistake.
                rare = not self._table.every_row and finding.key != "text"
                yield replace(finding, severity="warning") if rare else finding

    def slices(self) -> list[Slice]:
        """Small files together, large ones in parts where their format has any."""
        return self._table.slices(find_files(self._config.files, self._table.endings))

    def read(self, piece: Slice) -> Iterator[Record]:
        """A record for each row."""
        for row in self._table.rows(piece):
            yield row if isinstance(row, Broken) else row_record(self._config, row.values, row.path, row.place)
