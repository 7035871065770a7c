"""Tables as text: CSV, TSV and their kin."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from llmkit.data.sources.base import Broken, Reason, Slice, file_slices, readable_copy, surrogate_problem
from llmkit.data.sources.files import READ_ERRORS, SourceFile, ending_of
from llmkit.data.sources.lines import lines
from llmkit.data.sources.tables import Row, TableForm


class _RowError(csv.Error):
    """A row is larger than is read."""


class _Lines:
    """Lines for the csv module. What raises here ends a row, and the next one is read."""

    def __init__(self, file: SourceFile, form: TableForm) -> None:
        self._lines = lines(file, form.encoding, form.max_bytes)
        self._most = form.max_bytes
        self.number = 0
        self.new_row()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        _, line = next(self._lines)
        self.number += 1
        self._room -= 0 if line is None else len(line) + 1
        if line is None or self._room < 0:
            raise _RowError(f"the row is longer than {self._most:,} bytes")
        return line.decode("utf-8", "surrogateescape") + "\n"

    def new_row(self) -> None:
        """The lines that follow belong to another row."""
        # The end of its last line is not the row's.
        self._room = self._most + 1


class CsvTable:
    """Each row below the first, which names the columns; blank rows are none."""

    endings = (".csv", ".tsv")
    every_row = True

    def __init__(self, form: TableForm) -> None:
        self._form = form

    def slices(self, files: Iterable[SourceFile]) -> list[Slice]:
        """Whole files: whether a line break ends a row is known only by what comes before it."""
        return file_slices(files)

    def columns(self, file: SourceFile) -> Sequence[str] | Broken | None:
        """The first row."""
        first = next(self._cells(file), None)
        return first if first is None or isinstance(first, Broken) else first[1]

    def rows(self, piece: Slice) -> Iterator[Row | Broken]:
        """A row for each that is not blank."""
        for file in piece.files:
            rows = self._cells(file)
            names = next(rows, None)
            if isinstance(names, Broken):
                yield replace(names, detail=f"the file's first row, with the names, cannot be read: {names.detail}")
            elif names is not None:
                for row in rows:
                    yield row if isinstance(row, Broken) else self._row(file, names[1], *row)

    def _row(self, file: SourceFile, names: Sequence[str], line: int, cells: Sequence[str]) -> Row | Broken:
        place = f"line {line}"
        if len(cells) != len(names):
            detail = f"{place}: {len(cells)} cells where the first row has {len(names)}"
            return Broken(self._form.label, file.name, detail, _copy(cells))
        return Row(file.name, place, dict(zip(names, cells, strict=True)))

    def _cells(self, file: SourceFile) -> Iterator[tuple[int, list[str]] | Broken]:
        """Cells of each row with the line on which it starts; the first row is that of the names."""
        label = self._form.label
        # The module's default of 128 KiB is less than a long article; rows are bounded by their lines.
        csv.field_size_limit(max(csv.field_size_limit(), self._form.max_bytes + 1))
        delimiter = self._form.delimiter or ("\t" if ending_of(file.name) == ".tsv" else ",")
        source = _Lines(file, self._form)
        rows = csv.reader(source, delimiter=delimiter, strict=True)
        line = 0
        try:
            while True:
                line = source.number + 1
                source.new_row()
                try:
                    cells = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    reason: Reason = "too large" if isinstance(error, _RowError) else "malformed"
                    yield Broken(label, file.name, f"line {line}: {error}", reason=reason)
                    continue
                problem = surrogate_problem("".join(cells))
                if problem is not None:
                    yield Broken(label, file.name, f"line {line}: {problem}", _copy(cells), "encoding")
                elif cells:
                    yield line, cells
        except READ_ERRORS as error:
            detail = f"after line {max(line - 1, 0)}: the file cannot be read on: {error}"
            yield Broken(label, file.name, detail, reason="unreadable")


def _copy(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return readable_copy(text.getvalue())
