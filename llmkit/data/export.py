"""Token shards and documents as other tools open them: Megatron's indexed datasets, and `datasets` on disk."""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmkit.data.shards import INDEX, TokenShards
from llmkit.errors import ArtifactError
from llmkit.store.documents import COLUMNS, DOCUMENTS, document_files
from llmkit.store.files import write_json_atomic
from llmkit.store.splits import SPLITS, Split

if TYPE_CHECKING:
    import pyarrow as pa

MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_TYPES: dict[np.dtype[Any], tuple[int, np.dtype[Any]]] = {
    np.dtype("<u2"): (8, np.dtype("<u2")),
    np.dtype("<u4"): (4, np.dtype("<i4")),
}
"""For each type of ids its number in Megatron's index, which knows no uint32, and the type that is written."""
_TOKENIZER = "tokenizer"
_DOCUMENTS_AT_ONCE = 4096
_FILE_BYTES = 1 << 29


def export_megatron(source: Path, target: Path) -> None:
    """Write each split of an artifact of tokens as `<split>.bin` and `<split>.idx`, to be named without the ending.

    A document is one sequence, with the separator at its end, as Megatron's own preprocessing writes it with
    `--append-eod`; documents of no token at all are left out, as there. `tokenizer/` comes with it.

    Raises:
        ArtifactError: these are no tokens, or something is there already.
    """

    def write(folder: Path) -> None:
        for split in _token_splits(source):
            _write_megatron(TokenShards(source, split), folder / split)
        _copy_tokenizer(source, folder)

    _put_in_place(target, write)


def export_datasets(source: Path, target: Path) -> None:
    """Write tokens or documents as a directory for `datasets.load_from_disk`, with a part for each split.

    A row of tokens is a document: `input_ids`, its ids with the separator. A row of documents has the columns of the
    artifact's own files.

    Raises:
        ArtifactError: these are neither tokens nor documents, or something is there already.
    """

    def write(folder: Path) -> None:
        if (source / DOCUMENTS).is_dir():
            splits = [split for split in SPLITS if document_files(source, split)]
            for split in splits:
                _write_dataset(folder / split, split, _text_columns(), _document_batches(source, split))
        else:
            splits = _token_splits(source)
            for split in splits:
                _write_dataset(folder / split, split, _token_columns(), _token_batches(TokenShards(source, split)))
            _copy_tokenizer(source, folder)
        write_json_atomic(folder / "dataset_dict.json", {"splits": splits})

    _put_in_place(target, write)


def _token_splits(source: Path) -> list[Split]:
    splits = [split for split in SPLITS if (source / split / INDEX).is_file()]
    if not splits:
        raise ArtifactError(
            "there are no tokens here.", where=str(source), hint="Name the directory of a stage `tokens`."
        )
    return splits


def _copy_tokenizer(source: Path, folder: Path) -> None:
    if (source / _TOKENIZER).is_dir():
        shutil.copytree(source / _TOKENIZER, folder / _TOKENIZER)


def _put_in_place(target: Path, write: Callable[[Path], None]) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArtifactError("there is something here already.", where=str(target), hint="Name a new directory.")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        write(beside)
        beside.replace(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_megatron(shards: TokenShards, place: Path) -> None:
    """The index: magic, version (u64), type (u8), numbers of sequences and of document bounds (u64 each), lengths of
    sequences in tokens (i32), where they begin in bytes (i64), and the sequences that documents begin with (i64); all
    little-endian.
    """
    code, dtype = _TYPES[shards.dtype]
    lengths: list[NDArray[np.int64]] = []
    with place.with_suffix(".bin").open("wb") as stream:
        for ids, ends in shards.parts():
            for begin in range(0, ids.size, 1 << 20):
                stream.write(ids[begin : begin + (1 << 20)].astype(dtype, copy=False).data)
            starts = ends.astype(np.int64)
            lengths.append(starts[1:] - starts[:-1])
    sizes = np.concatenate(lengths)
    sizes = sizes[sizes > 0]
    begins = np.cumsum(sizes, dtype=np.int64) - sizes
    with place.with_suffix(".idx").open("wb") as stream:
        stream.write(MAGIC)
        stream.write(struct.pack("<QBQQ", _VERSION, code, sizes.size, sizes.size + 1))
        _write_array(stream, sizes, "<i4")
        _write_array(stream, begins * dtype.itemsize, "<i8")
        _write_array(stream, np.arange(sizes.size + 1), "<i8")


def _write_array(stream: BinaryIO, values: NDArray[np.int64], dtype: str) -> None:
    stream.write(values.astype(dtype).tobytes())


def _token_columns() -> Any:
    from datasets import Features, Value

    # A list, in whichever way this version of datasets spells it.
    return Features.from_arrow_schema(Features({"input_ids": [Value("int32")]}).arrow_schema)


def _text_columns() -> Any:
    from datasets import Features, Value

    return Features({name: Value("string") for name in COLUMNS})


def _token_batches(shards: TokenShards) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    for ids, ends in shards.parts():
        for first in range(0, ends.size - 1, _DOCUMENTS_AT_ONCE):
            bounds = ends[first : first + _DOCUMENTS_AT_ONCE + 1].astype(np.int64)
            values = ids[bounds[0] : bounds[-1]].astype(np.int32)
            rows = pa.ListArray.from_arrays(pa.array(bounds - bounds[0], pa.int32()), pa.array(values, pa.int32()))
            yield pa.RecordBatch.from_arrays([rows], ["input_ids"])


def _document_batches(source: Path, split: str) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    for file in document_files(source, split):
        with pq.ParquetFile(file) as opened:
            yield from opened.iter_batches(256, columns=list(COLUMNS), use_threads=False)


def _write_dataset(folder: Path, split: str, columns: Any, batches: Iterator[pa.RecordBatch]) -> None:
    """One split as `datasets` saves it: streams of Arrow, and two files that describe them."""
    import pyarrow as pa
    from datasets import DatasetInfo

    folder.mkdir()
    schema = columns.arrow_schema
    names: list[str] = []
    digest = hashlib.sha256()
    batch = next(batches, None)
    while batch is not None:
        names.append(f"data-{len(names):05d}.arrow")
        written = 0
        with pa.OSFile(str(folder / names[-1]), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
            while batch is not None and written < _FILE_BYTES:
                stream.write_table(pa.Table.from_batches([batch]).cast(schema))
                written += batch.nbytes
                batch = next(batches, None)
        with (folder / names[-1]).open("rb") as done:
            digest.update(hashlib.file_digest(done, "sha256").digest())
    count = len(names)
    files = []
    for number, name in enumerate(names):
        files.append(f"data-{number:05d}-of-{count:05d}.arrow")
        (folder / name).rename(folder / files[-1])
    DatasetInfo(features=columns).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": digest.hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    write_json_atomic(folder / "state.json", state)
