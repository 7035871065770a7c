"""The keys of a part: what every method needs to know of its texts, read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from llmkit.data.deduplication.base import Array, Entries, join_entries, save_entries
from llmkit.data.deduplication.exact import content_key
from llmkit.data.deduplication.minhash import band_entries
from llmkit.data.deduplication.substrings import TEXT, TEXT_STARTS, anchor_entries
from llmkit.data.deduplication.units import line_entries, paragraph_entries

_BATCH_ROWS = 1024
_BATCH_CHARACTERS = 1 << 22
Find = Callable[[Sequence[str]], Entries]


def write_keys(documents: Sequence[Path], settings: Mapping[str, Any], out: Path) -> int:
    """Write the keys of one part to a folder.

    Args:
        documents: its Parquet files, in order, with columns `id` and `text`.
        settings: `DeduplicationConfig.key_settings()`, on which nothing else of the configuration depends.
        out: folder, made where it is absent: `id.npy`, `characters.npy`, and for each method the .npy files of its
            entries, sorted by key.

    Returns:
        how many documents there are.

    Raises:
        MissingDependencyError: a package that a method needs is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    finders = _finders(settings)
    found: dict[str, list[Entries]] = {name: [] for name in finders}
    ids: list[Array] = [np.empty(0, "S32")]
    characters: list[int] = []
    with _TextWriter(out if "substrings" in settings else None) as writer:
        for names, texts in read_columns(documents, ("id", "text")):
            for name, find in finders.items():
                found[name].append(find(texts).moved(len(characters)))
            ids.append(np.array([name.encode() for name in names], "S32"))
            characters += [len(text) for text in texts]
            writer.write(texts)
    for name, pieces in found.items():
        save_entries(out, name, join_entries(pieces) if pieces else finders[name](()))
    np.save(out / "id.npy", np.concatenate(ids))
    np.save(out / "characters.npy", np.array(characters, np.int64))
    return len(characters)


def read_columns(files: Sequence[Path], columns: Sequence[str]) -> Iterator[list[list[Any]]]:
    """Columns of documents, a batch of rows at a time, no more than about 4 Mi characters unless one text is longer."""
    import pyarrow.parquet as pq

    for file in files:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(_BATCH_ROWS, columns=list(columns), use_threads=False):
                values = [batch.column(name).to_pylist() for name in columns]
                begin = size = 0
                for row, text in enumerate(values[-1]):
                    if size and size + len(text) > _BATCH_CHARACTERS:
                        yield [column[begin:row] for column in values]
                        begin, size = row, 0
                    size += len(text)
                if begin < len(values[-1]):
                    yield [column[begin:] for column in values]


class _TextWriter:
    """Keeps texts as bytes that can be read anywhere, where a method needs them; a context manager."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._starts = [0]

    def __enter__(self) -> Self:
        if self._folder is not None:
            self._stream = (self._folder / TEXT).open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._stream.close()
            np.save(self._folder / TEXT_STARTS, np.array(self._starts, np.int64))

    def write(self, texts: Sequence[str]) -> None:
        """Append texts."""
        if self._folder is not None:
            for text in texts:
                self._starts.append(self._starts[-1] + self._stream.write(text.encode()))


def _finders(settings: Mapping[str, Any]) -> dict[str, Find]:
    finders: dict[str, Find] = {}
    if "exact" in settings:
        finders["exact"] = _exact_entries
    if "minhash" in settings:
        finders["minhash"] = partial(band_entries, settings=settings["minhash"])
    if "paragraphs" in settings:
        finders["paragraphs"] = partial(paragraph_entries, **settings["paragraphs"])
    if "lines" in settings:
        finders["lines"] = partial(line_entries, **settings["lines"])
    if "substrings" in settings:
        finders["substrings"] = partial(anchor_entries, **settings["substrings"])
    return finders


def _exact_entries(texts: Sequence[str]) -> Entries:
    """Content keys: the first half is the key, the second stands in the place of the beginning."""
    halves = np.frombuffer(b"".join(map(content_key, texts)), "<u8").reshape(-1, 2)
    rest: Array = halves[:, 1].astype(np.uint64)
    return Entries(halves[:, 0].astype(np.uint64), np.arange(len(texts)), rest, np.zeros(len(texts), np.int64))
