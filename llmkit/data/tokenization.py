"""Tokenization in tasks: each turns some rows of a file of documents into ids, and what it makes depends on them and
the tokenizer alone. Joined in order, the results are the shards that one process would have written.

The result of a task is a folder:

- `ids.bin`: ids of its documents behind one another, separators included, little-endian, no header
- `lengths.npy`: int64 [documents], tokens of each document, its separator included

Its facts are `sources`: documents, tokens and bytes of text of each source.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.execution.tasks import Result, Task, Work
from llmkit.data.shards import DTYPES, ShardWriter, token_dtype
from llmkit.errors import ArtifactError, DataError
from llmkit.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pyarrow as pa

TASK_BYTES = 1 << 23
"""Text of a task, about."""
IDS, LENGTHS = "ids.bin", "lengths.npy"
_BATCH_ROWS = 256
_BATCH_BYTES = 1 << 20


def plan_tasks(
    file: Path, digest: str, tokenizer: Path, tokenizer_digest: str, sources: Sequence[str] | None
) -> list[Task]:
    """Tasks over all documents of a file, in order; they depend on the file and the tokenizer alone.

    Args:
        file: Parquet file of documents.
        digest: of the file's bytes.
        tokenizer: its directory.
        tokenizer_digest: its digest.
        sources: names of the sources whose documents are taken; None for all.
    """
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(file)
    column = metadata.schema.names.index("text")
    names = None if sources is None else sorted(sources)
    tasks = []
    first = size = rows = 0
    for number in range(metadata.num_row_groups):
        size += metadata.row_group(number).column(column).total_uncompressed_size
        rows += metadata.row_group(number).num_rows
        if size < TASK_BYTES and number < metadata.num_row_groups - 1:
            continue
        # Row groups of much text are shared: to read them several times costs little beside what is done with them.
        parts = max(1, min(rows, round(size / TASK_BYTES)))
        for part in range(parts):
            chosen = [rows * part // parts, rows * (part + 1) // parts]
            groups = [first, number + 1]
            settings = {
                "documents": digest, "groups": groups, "rows": chosen, "sources": names, "tokenizer": tokenizer_digest,
            }  # fmt: skip
            tasks.append(
                Task(
                    "tokenize",
                    f"{__name__}:tokenize",
                    settings,
                    places={"documents": str(file), "tokenizer": str(tokenizer)},
                    label=f"{file.name}, rows {chosen[0]:,} to {chosen[1]:,} from row group {first:,} on",
                    # Other work of as many bytes takes a tenth of the time.
                    cost=10 * size // parts,
                )
            )
        first, size, rows = number + 1, 0, 0
    return tasks


def tokenize(work: Work) -> Mapping[str, Any]:
    """Do a task.

    Raises:
        ArtifactError: the file cannot be read.
        DataError: the tokenizer fails on a document; the message names it.
    """
    tokenizer = _tokenizer(work.places["tokenizer"], work.settings["tokenizer"])
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    dtype = DTYPES[token_dtype(tokenizer.vocab_size)]
    sources: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    lengths: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    with (work.output / IDS).open("wb") as stream:
        settings = work.settings
        for batch in _batches(work.places["documents"], settings["groups"], settings["rows"], settings["sources"]):
            encoded = [[*ids, *end] for ids in _encode(tokenizer, batch)]
            lengths.append(np.array([len(ids) for ids in encoded], dtype=np.int64))
            for ids, source, size in zip(encoded, batch.sources, batch.sizes, strict=True):
                stream.write(np.array(ids, dtype=dtype).data)
                for index, amount in enumerate((1, len(ids), size)):
                    sources[source][index] += amount
    with (work.output / LENGTHS).open("wb") as stream:
        np.save(stream, np.concatenate(lengths), allow_pickle=False)
    return {"sources": dict(sorted(sources.items()))}


def join(results: Iterable[Result], writer: ShardWriter) -> dict[str, list[int]]:
    """Write the results of tasks, in order, as shards.

    Returns:
        documents, tokens and bytes of text by source.
    """
    sources: dict[str, list[int]] = {}
    for result in results:
        found: Mapping[str, list[int]] = result.facts["sources"]
        for source, row in found.items():
            sources[source] = [a + b for a, b in zip(sources.get(source, (0, 0, 0)), row, strict=True)]
        lengths: NDArray[np.int64] = np.load(result.path / LENGTHS, allow_pickle=False)
        size = int(lengths.sum())
        # What is empty cannot be mapped.
        ids = np.memmap(result.path / IDS, dtype=writer.dtype, mode="r") if size else np.zeros(0, writer.dtype)
        writer.write_many(ids, lengths, sum(row[2] for row in found.values()))
    return dict(sorted(sources.items()))


@dataclass(frozen=True)
class _Batch:
    texts: list[str]
    names: list[str]
    sources: list[str]
    sizes: list[int]


def _batches(
    file: str, groups: Sequence[int], chosen: Sequence[int], sources: Sequence[str] | None
) -> Iterator[_Batch]:
    """The documents of some rows of some row groups, a few at a time."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    columns = ["id", "text", "source"]
    try:
        with pq.ParquetFile(file) as opened:
            missing = [name for name in columns if name not in opened.schema_arrow.names]
            if missing:
                raise ArtifactError(f"the file has no column `{missing[0]}`.", where=file)
            begin, end = chosen
            for read in opened.iter_batches(
                _BATCH_ROWS, row_groups=list(range(*groups)), columns=columns, use_threads=False
            ):
                rows = read.slice(max(begin, 0), max(end - max(begin, 0), 0))
                begin, end = begin - read.num_rows, end - read.num_rows
                if sources is not None:
                    rows = rows.filter(pc.is_in(rows.column("source"), pa.array(sources, pa.string())))
                yield from _cut(rows, pc.binary_length(rows.column("text")).to_pylist())
                if end <= 0:
                    break
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"the file cannot be read: {error}.", where=file) from None


def _cut(rows: pa.RecordBatch, sizes: list[int]) -> Iterator[_Batch]:
    """Rows in batches of a bounded size of text."""
    begin = total = 0
    for number, size in enumerate([*sizes, _BATCH_BYTES + 1]):
        if number > begin and total + size > _BATCH_BYTES:
            part = rows.slice(begin, number - begin)
            names, texts, sources = (part.column(name).to_pylist() for name in ("id", "text", "source"))
            yield _Batch(texts, names, sources, sizes[begin:number])
            begin, total = number, 0
        total += size


def _encode(tokenizer: Tokenizer, batch: _Batch) -> list[list[int]]:
    try:
        return tokenizer.encode_batch(batch.texts)
    except DataError:
        for name, text in zip(batch.names, batch.texts, strict=True):
            try:
                tokenizer.encode(text)
            except DataError as error:
                raise DataError(error.message, where=f"document {name}", hint=error.hint) from None
        raise


@lru_cache(maxsize=2)
def _tokenizer(directory: str, digest: str) -> Tokenizer:
    tokenizer = Tokenizer.load(Path(directory))
    if tokenizer.digest != digest:
        raise ArtifactError("the tokenizer has changed while the work went on.", where=directory)
    return tokenizer
