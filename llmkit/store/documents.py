"""Documents: pieces of text with their origin, kept as Parquet files that any tool of the Parquet world opens.

An artifact of documents holds `documents/<split>-<number>.parquet`. Metadata is one JSON object per row. Equal
documents in equal order give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from llmkit.errors import ArtifactError
from llmkit.store.files import canonical_json
from llmkit.store.splits import SPLITS, Split

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

DOCUMENTS = "documents"
COLUMNS = ("id", "text", "source", "path", "license", "language", "metadata", "split")
ROWS_PER_FILE = 100_000
_GROUP_ROWS = 1_000
_GROUP_CHARACTERS = 1 << 24
_BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of text and where it comes from.

    Args:
        id: `document_id` of the text.
        text: the text.
        source: name of the source in the config.
        path: file, module or page inside the source.
        license: licence of the text (SPDX name), where it is known.
        language: language of the text (BCP 47), where it is known.
        metadata: whatever else the source says of it.
        split: "train", "validation" or "test".
    """

    id: str
    text: str
    source: str
    path: str
    license: str | None = None
    language: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    split: Split = "train"


def document_id(text: str) -> str:
    """The first 32 hexadecimal digits of the sha256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class ParquetFiles:
    """Writes rows of strings to `<directory>/<prefix>-<number>.parquet`, a file of `rows_per_file` rows at a time.

    Memory is bounded: a row group is written after 1,000 rows or 16 Mi characters. A context manager; on an exception
    the files are left unfinished, for whoever starts over to remove.

    Args:
        directory: folder, made where it is absent.
        prefix: start of the files' names.
        columns: names of the columns, all of strings that may be null.
        rows_per_file: rows in each file but the last.
    """

    def __init__(
        self, directory: Path, prefix: str, columns: Sequence[str], rows_per_file: int = ROWS_PER_FILE
    ) -> None:
        self._directory = directory
        self._prefix = prefix
        self._columns = tuple(columns)
        self._rows_per_file = rows_per_file
        self._rows: list[Sequence[str | None]] = []
        self._characters = 0
        self._rows_in_file = 0
        self._files = 0
        self._writer: pq.ParquetWriter | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._close_file()

    def write(self, row: Sequence[str | None]) -> None:
        """Append a row: one value for each column."""
        self._rows.append(row)
        self._characters += sum(len(value) for value in row if value is not None)
        full = self._rows_in_file + len(self._rows) >= self._rows_per_file
        if full or len(self._rows) >= _GROUP_ROWS or self._characters >= _GROUP_CHARACTERS:
            self._flush()
        if full:
            self._close_file()

    def _flush(self) -> None:
        if not self._rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(name, pa.string()) for name in self._columns])
        columns = [pa.array(values, pa.string()) for values in zip(*self._rows, strict=True)]
        if self._writer is None:
            path = self._directory / f"{self._prefix}-{self._files:05d}.parquet"
            self._writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=3)
            self._files += 1
        self._writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        self._rows_in_file += len(self._rows)
        self._rows = []
        self._characters = 0

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        self._rows_in_file = 0


class DocumentWriter:
    """Writes documents to an artifact's directory as they come, each into the files of its split; a context manager.

    Args:
        directory: the artifact's directory; files go to `documents/` in it.
        rows_per_file: documents in each file but the last of a split.
    """

    def __init__(self, directory: Path, rows_per_file: int = ROWS_PER_FILE) -> None:
        folder = directory / DOCUMENTS
        self.counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self._files = {split: ParquetFiles(folder, split, COLUMNS, rows_per_file) for split in SPLITS}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for files in self._files.values():
            files.__exit__(kind, error, trace)

    def write(self, document: Document) -> None:
        """Append a document to its split."""
        self._files[document.split].write(document_row(document))
        self.counts[document.split] += 1


def document_row(document: Document) -> list[str | None]:
    """The values of a document in the order of `COLUMNS`."""
    return [
        document.id,
        document.text,
        document.source,
        document.path,
        document.license,
        document.language,
        canonical_json(dict(document.metadata)),
        document.split,
    ]


def write_documents(
    directory: Path, documents: Iterable[Document], rows_per_file: int = ROWS_PER_FILE
) -> dict[str, int]:
    """Write documents to `<directory>/documents/`.

    Returns:
        how many documents each split got.
    """
    with DocumentWriter(directory, rows_per_file) as writer:
        for document in documents:
            writer.write(document)
    return writer.counts


def read_documents(directory: Path, splits: Sequence[str] | None = None) -> Iterator[Document]:
    """Documents of an artifact, one by one, reading no more than a row group at a time.

    Args:
        directory: the artifact's directory, which holds `documents/`.
        splits: names of the splits wanted; None for all. A split that holds nothing gives nothing.

    Yields:
        documents split after split (train, validation, test), within a split in the order in which they were written.

    Raises:
        ValueError: an unknown split.
        ArtifactError: no documents here, or a file that is not what `write_documents` writes.
    """
    for split in _wanted(splits):
        for file in document_files(directory, split):
            for batch in _batches(file, COLUMNS):
                values = [batch.column(name).to_pylist() for name in COLUMNS]
                for row in zip(*values, strict=True):
                    yield _document(row)


def read_texts(directory: Path, splits: Sequence[str] | None = None) -> Iterator[str]:
    """Only the texts of `read_documents`, in the same order and several times as fast."""
    for split in _wanted(splits):
        for file in document_files(directory, split):
            for batch in _batches(file, ("text",)):
                yield from batch.column("text").to_pylist()


def document_files(directory: Path, split: str) -> list[Path]:
    """The files of one split in order.

    Raises:
        ArtifactError: the artifact holds no documents at all.
    """
    folder = directory / DOCUMENTS
    if not any(folder.glob("*.parquet")):
        raise ArtifactError("there are no documents here (no documents/*.parquet).", where=str(directory))
    return sorted(folder.glob(f"{split}-*.parquet"))


def count_documents(directory: Path, split: str) -> int:
    """How many documents a split holds, from the files' own headers."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(file).num_rows for file in document_files(directory, split))


def _wanted(splits: Sequence[str] | None) -> list[Split]:
    unknown = [name for name in splits or () if name not in SPLITS]
    if unknown:
        raise ValueError(f"unknown split {unknown[0]!r}; the splits are {', '.join(SPLITS)}")
    return [name for name in SPLITS if splits is None or name in splits]


def _batches(file: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            missing = [name for name in columns if name not in opened.schema_arrow.names]
            if missing:
                raise ArtifactError(f"the file has no column `{missing[0]}`.", where=str(file))
            yield from opened.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns), use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"the file cannot be read: {error}.", where=str(file)) from None


def _document(row: Sequence[Any]) -> Document:
    values = dict(zip(COLUMNS, row, strict=True))
    return Document(**{**values, "metadata": json.loads(values["metadata"])})
