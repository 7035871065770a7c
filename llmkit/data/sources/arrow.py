"""Arrow files and streams, the form in which the `datasets` library and Feather keep tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from llmkit.data.sources.base import Broken, Slice, file_slices
from llmkit.data.sources.batches import batch_rows
from llmkit.data.sources.files import READ_ERRORS, SourceFile, is_compressed, is_url, open_bytes
from llmkit.data.sources.tables import Row, TableForm

_MAGIC = b"ARROW1"
_ERRORS = (*READ_ERRORS, pa.ArrowException)


class ArrowTable:
    """Each row; a record batch at a time is checked and read, out of a map of the file where it is local."""

    endings = (".arrow", ".feather", ".ipc", ".arrows")
    every_row = True

    def __init__(self, form: TableForm) -> None:
        self._form = form

    def slices(self, files: Iterable[SourceFile]) -> list[Slice]:
        """Whole files."""
        return file_slices(files)

    def columns(self, file: SourceFile) -> Sequence[str] | Broken | None:
        """Names in the file's schema."""
        try:
            with _opened(file) as (schema, _):
                names: list[str] = schema.names
                return names
        except _ERRORS as error:
            return Broken(self._form.label, file.name, f"is no Arrow file: {error}")

    def rows(self, piece: Slice) -> Iterator[Row | Broken]:
        """Each row."""
        for file in piece.files:
            number = 0
            try:
                with _opened(file) as (schema, batches):
                    wanted = self._form.columns
                    names = [name for name in schema.names if wanted is None or name in wanted]
                    for batch in batches:
                        # Offsets that lead out of their buffers would be followed.
                        batch.validate(full=True)
                        yield from batch_rows(batch.select(names), self._form, file.name, number + 1)
                        number += batch.num_rows
            except _ERRORS as error:
                detail = f"after row {number}: the file cannot be read on: {error}"
                yield Broken(self._form.label, file.name, detail, reason="unreadable")


@contextmanager
def _opened(file: SourceFile) -> Iterator[tuple[Any, Iterator[pa.RecordBatch]]]:
    """The schema and the batches of a file, whichever of the two forms it is in."""
    mapped = not is_url(file.path) and not is_compressed(file.name) and file.size > 0
    with pa.memory_map(file.path) if mapped else open_bytes(file.path) as stream:
        beginning = stream.read(len(_MAGIC))
        stream.seek(0)
        if beginning == _MAGIC:
            with pa.ipc.open_file(stream) as opened:
                yield opened.schema, (opened.get_batch(index) for index in range(opened.num_record_batches))
        else:
            with pa.ipc.open_stream(stream) as opened:
                yield opened.schema, iter(opened)
