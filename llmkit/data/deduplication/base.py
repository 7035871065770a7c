"""What the methods of deduplication share: parts of a corpus, keys sorted on disk, and what a method finds.

A corpus is a row of parts, one for each task of reading, earlier corpora first and then the sources in their order. The
documents of all parts, one behind another, are numbered from 0: a document of a lower number came before. Each method
works in three kinds of tasks, every one of them a pure function of the files it reads:

1. `keys.write_keys` looks at the texts of one part, once, and writes what all methods need of them: 64-bit keys with
   the rows that have them, sorted by key, so that a range of keys is one piece of the file.
2. `Method.find` takes one of `Method.shares(parts)` ranges of keys out of all parts, and compares what falls into it.
   How many shares there are depends on the number of keys alone, so that memory is bounded whatever the corpus's size.
3. `Method.settle` puts together what was found, and writes for each part which rows go and why, or what is cut out of
   them; `results.settled` and `results.parts_after` read it.

The next method gets the parts as `parts_after` leaves them, so that what one drops is no longer there for the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SHARE_ENTRIES = 1 << 22
"""Keys that one task compares; it holds about 50 bytes for each in memory."""


@dataclass(frozen=True, slots=True)
class Part:
    """The documents of one task of reading.

    Args:
        keys: folder that `keys.write_keys` wrote for them.
        rows: how many documents there are.
        documents: their Parquet files, in order, with a column `text`.
        kept: .npy file with a bool for each row, False where an earlier phase dropped it; None where none did.
        measures: by filter, the Parquet files with its columns, named `<filter>.<column>`, row by row.
        earlier: whether they belong to a corpus that was made before, of which nothing is written.
    """

    keys: Path
    rows: int
    documents: tuple[Path, ...] = ()
    kept: Path | None = None
    measures: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    earlier: bool = False

    def mask(self) -> NDArray[np.bool_]:
        """Which rows are still in the corpus."""
        return np.ones(self.rows, dtype=bool) if self.kept is None else np.load(self.kept)


class Method(Protocol):
    """A way of finding what is there already.

    Args:
        name: name of the step in reports.
        settings: what the results of `find` and `settle` depend on beside the parts, JSON-like.
    """

    name: str
    settings: Mapping[str, Any]

    def shares(self, parts: Sequence[Part]) -> int:
        """Into how many tasks `find` is divided, at least one."""
        ...

    def find(self, parts: Sequence[Part], share: int, shares: int, out: Path) -> None:
        """Compare the keys of one share, from 0 to `shares` - 1, and write what is found to the folder `out`."""
        ...

    def settle(self, parts: Sequence[Part], found: Sequence[Path], out: Path) -> None:
        """Put together the results of all shares; writes what `results.settled` reads to the folder `out`."""
        ...


@dataclass(frozen=True, slots=True)
class Entries:
    """Keys with where they stand, [n] each.

    Args:
        key: 64-bit keys.
        row: numbers of documents, those of a part or of the corpus.
        begin: first bytes of what has the key in its text; absent for whole documents.
        end: ends of it.
    """

    key: NDArray[np.uint64]
    row: NDArray[np.int64]
    begin: NDArray[np.int64] | None = None
    end: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.key)

    def take(self, places: Array | slice) -> Entries:
        """Those at some places, or where a mask is true."""
        begin = None if self.begin is None else self.begin[places]
        end = None if self.end is None else self.end[places]
        return Entries(self.key[places], self.row[places], begin, end)

    def moved(self, rows: int) -> Entries:
        """The same with numbers of documents that are higher."""
        return replace(self, row=self.row + rows)

    def in_order(self) -> Entries:
        """Sorted by key, then row, then beginning."""
        columns = (self.row, self.key) if self.begin is None else (self.begin, self.row, self.key)
        return self.take(np.lexsort(columns))


def save_entries(folder: Path, name: str, entries: Entries) -> None:
    """Write the keys of one part, sorted, to `<folder>/<name>.<column>.npy`."""
    entries = entries.in_order()
    np.save(folder / f"{name}.key.npy", entries.key)
    np.save(folder / f"{name}.row.npy", entries.row.astype(np.uint32))
    if entries.begin is not None and entries.end is not None:
        # The second halves of whole content keys stand in the place of beginnings, in all their bits.
        kind = entries.begin.dtype if entries.begin.dtype == np.uint64 else np.uint32
        np.save(folder / f"{name}.begin.npy", entries.begin.astype(kind))
        np.save(folder / f"{name}.end.npy", entries.end.astype(np.uint32))


def no_entries() -> Entries:
    """None, as those of units inside of documents."""
    empty = np.empty(0, np.int64)
    return Entries(np.empty(0, np.uint64), empty, empty, empty)


def count_shares(parts: Sequence[Part], name: str, entries: int = SHARE_ENTRIES) -> int:
    """How many shares hold about `entries` keys each."""
    total = sum(len(np.load(part.keys / f"{name}.key.npy", mmap_mode="r")) for part in parts)
    return max(1, -(-total // entries))


def load_share(parts: Sequence[Part], name: str, share: int, shares: int) -> Entries:
    """The keys of one share of documents still in the corpus, sorted, with the numbers of the documents in it.

    The shares are ranges of the keys' values, equally wide.
    """
    low, high = (2**64 * bound // shares for bound in (share, share + 1))
    found: list[Entries] = []
    for part, first in zip(parts, starts(parts), strict=False):
        keys = np.load(part.keys / f"{name}.key.npy", mmap_mode="r")
        begin = int(np.searchsorted(keys, np.uint64(low)))
        end = len(keys) if high == 2**64 else int(np.searchsorted(keys, np.uint64(high)))
        if begin < end:
            found.append(_piece(part, name, begin, end, int(first)))
    return join_entries(found).in_order() if found else no_entries()


def _piece(part: Part, name: str, begin: int, end: int, first: int) -> Entries:
    def column(which: str, kind: type[np.generic]) -> Array:
        found: Array = np.load(part.keys / f"{name}.{which}.npy", mmap_mode="r")[begin:end].astype(kind)
        return found

    ranged = (part.keys / f"{name}.begin.npy").exists()
    piece = Entries(
        column("key", np.uint64),
        column("row", np.int64),
        column("begin", np.int64) if ranged else None,
        column("end", np.int64) if ranged else None,
    )
    if part.kept is not None:
        piece = piece.take(np.load(part.kept, mmap_mode="r")[piece.row])
    return replace(piece, row=piece.row + first)


def join_entries(pieces: Sequence[Entries]) -> Entries:
    """Entries of one kind, one piece behind another; at least one piece."""
    begins = [piece.begin for piece in pieces if piece.begin is not None]
    ends = [piece.end for piece in pieces if piece.end is not None]
    return Entries(
        np.concatenate([piece.key for piece in pieces]),
        np.concatenate([piece.row for piece in pieces]),
        np.concatenate(begins) if begins else None,
        np.concatenate(ends) if ends else None,
    )


def starts(parts: Sequence[Part]) -> NDArray[np.int64]:
    """The number of each part's first document, and the number of documents behind them, [parts + 1]."""
    return np.concatenate([[0], np.cumsum([part.rows for part in parts], dtype=np.int64)]).astype(np.int64)


def group_starts(*columns: Array) -> NDArray[np.int64]:
    """Where runs of equal values begin in sorted columns of the same length."""
    if not len(columns[0]):
        return np.empty(0, np.int64)
    changes = np.zeros(len(columns[0]) - 1, dtype=bool)
    for column in columns:
        changes |= column[1:] != column[:-1]
    return np.concatenate([[0], np.flatnonzero(changes) + 1]).astype(np.int64)


def sizes_of(begins: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Lengths of runs that begin at some places and fill `total`."""
    return np.diff(np.append(begins, total))
