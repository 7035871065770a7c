"""Parts of a corpus on their way: what a task of reading gives, cut into files that one task holds in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.store.documents import COLUMNS, Document, document_row

PART_BYTES = 1 << 24
"""Bytes of text from which the next document begins a new part."""
PART_ROWS = 1 << 15
_GROUP_ROWS = 512
_GROUP_CHARACTERS = 1 << 22


@dataclass(frozen=True, slots=True)
class Part:
    """Some documents of a source, in one file.

    Args:
        source: number of the source.
        read: key of the task that has read it.
        number: which part of what that task has read.
        rows: documents.
        bytes: UTF-8 bytes of their texts.
        label: what it is, for messages.
    """

    source: int
    read: str
    number: int
    rows: int
    bytes: int
    label: str


def documents_file(folder: Path, number: int) -> Path:
    """The Parquet file of a part in the result of a task of reading."""
    return folder / f"documents-{number:05d}.parquet"


def load_sizes(folder: Path, number: int) -> NDArray[np.int64]:
    """UTF-8 bytes of each text of a part."""
    sizes: NDArray[np.int64] = np.load(folder / f"sizes-{number:05d}.npy")
    return sizes


class PartWriter:
    """Writes documents into parts of some size; no more than a few megabytes of them are in memory.

    Args:
        folder: where to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[Sequence[str | None]] = []
        self._characters = 0
        self._sizes: list[int] = []
        self._bytes = 0
        self._writer: Any = None
        self.parts: list[dict[str, int]] = []
        """Rows and bytes of each part that is closed."""

    def write(self, document: Document, size: int) -> None:
        """Append a document with the size of its text in bytes."""
        self._rows.append(document_row(document))
        self._sizes.append(size)
        self._characters += len(document.text)
        if len(self._rows) >= _GROUP_ROWS or self._characters >= _GROUP_CHARACTERS:
            self._flush()
        self._bytes += size
        if self._bytes >= PART_BYTES or len(self._sizes) >= PART_ROWS:
            self.close()

    def close(self) -> None:
        """Close the current part."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
            np.save(self._folder / f"sizes-{len(self.parts):05d}.npy", np.array(self._sizes, np.int64))
            self.parts.append({"rows": len(self._sizes), "bytes": self._bytes})
            self._writer, self._sizes, self._bytes = None, [], 0

    def _flush(self) -> None:
        if not self._rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(name, pa.string()) for name in COLUMNS])
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                documents_file(self._folder, len(self.parts)), schema,
                compression="lz4", use_dictionary=["source", "license", "language", "split"], write_statistics=False,
            )  # fmt: skip
        columns = [pa.array(values, pa.string()) for values in zip(*self._rows, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        self._rows, self._characters = [], 0


def read_documents_of(file: Path) -> Iterator[list[Document]]:
    """The documents of a part, some at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            table = opened.read_row_group(group, columns=list(COLUMNS), use_threads=False)
            values = {name: table.column(name).to_pylist() for name in COLUMNS}
            values["metadata"] = [json.loads(text) if text != "{}" else {} for text in values["metadata"]]
            yield [Document(*row) for row in zip(*values.values(), strict=True)]
