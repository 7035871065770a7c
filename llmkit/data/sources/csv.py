"""Tables as text: CSV, TSV and their kin."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace

from llmkit.config.base import Finding
from llmkit.data.sources.base import Broken, Record, Slice, file_slices, readable_copy, surrogate_problem
from llmkit.data.sources.columns import check_columns, row_record
from llmkit.data.sources.config import CsvSource
from llmkit.data.sources.files import READ_ERRORS, SourceFile, check_files, ending_of, find_files, open_text

_ENDINGS = (".csv", ".tsv")
# The default of the csv module, 131,072 characters, is less than a long article.
_CELL_CHARACTERS = 1 << 26


class CsvReader:
    """Reads each row below the first, which names the columns, as one document; blank rows are no records."""

    def __init__(self, config: CsvSource) -> None:
        self._config = config

    def check(self) -> Iterator[Finding]:
        """Patterns that mean no file, and columns that the first file does not have."""
        missing = list(check_files(self._config.files, _ENDINGS))
        yield from missing
        if not missing:
            file = find_files(self._config.files, _ENDINGS)[0]
            first = next(self._rows(file), None)
            if isinstance(first, Broken):
                yield Finding(f"`{file.name}`: {first.detail}.", key="files")
            else:
                yield from check_columns(self._config, first[1] if first else (), f"`{file.name}`")

    def slices(self) -> list[Slice]:
        """Files together up to some size."""
        return file_slices(find_files(self._config.files, _ENDINGS))

    def read(self, piece: Slice) -> Iterator[Record]:
        """A record for each row that is not blank."""
        for file in piece.files:
            rows = self._rows(file)
            names = next(rows, None)
            if isinstance(names, Broken):
                yield replace(names, detail=f"the file's first row, with the names, cannot be read: {names.detail}")
            elif names is not None:
                for row in rows:
                    yield row if isinstance(row, Broken) else self._record(file, names[1], *row)

    def _record(self, file: SourceFile, names: Sequence[str], line: int, cells: Sequence[str]) -> Record:
        place = f"line {line}"
        if len(cells) != len(names):
            detail = f"{place}: {len(cells)} cells where the first row has {len(names)}"
            return Broken(self._config.label, file.name, detail, _copy(cells))
        return row_record(self._config, dict(zip(names, cells, strict=True)), file.name, place)

    def _rows(self, file: SourceFile) -> Iterator[tuple[int, list[str]] | Broken]:
        """Cells of each row with the line on which it starts; the first row is that of the names."""
        csv.field_size_limit(_CELL_CHARACTERS)
        delimiter = self._config.delimiter or ("\t" if ending_of(file.name) == ".tsv" else ",")
        line = 0
        try:
            with open_text(file.path, self._config.encoding) as stream:
                rows = csv.reader(stream, delimiter=delimiter, strict=True)
                while True:
                    line = rows.line_num + 1
                    try:
                        cells = next(rows)
                    except StopIteration:
                        return
                    except csv.Error as error:
                        yield Broken(self._config.label, file.name, f"line {line}: {error}")
                        continue
                    problem = surrogate_problem("".join(cells))
                    if problem is not None:
                        yield Broken(self._config.label, file.name, f"line {line}: {problem}", _copy(cells))
                    elif cells:
                        yield line, cells
        except READ_ERRORS as error:
            detail = f"after line {max(line - 1, 0)}: the file cannot be read on: {error}"
            yield Broken(self._config.label, file.name, detail)


def _copy(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return readable_copy(text.getvalue())
