"""What the methods of deduplication share: parts of a corpus, keys sorted on disk, and what a method finds.

A corpus is a row of parts, one for each task of reading, earlier corpora first and then the sources in their order. The
documents of all parts, one behind another, are numbered from 0: a document of a lower number came before. Each method
works in three kinds of tasks, every one of them a pure function of the files it reads:

1. `keys.write_keys` looks at the texts of one part, once, and writes what all methods need of them: 64-bit keys with
   the rows that have them, sorted by key, so that a range of keys is one piece of the file.
2. `Method.find` takes one of `Method.shares(parts)` ranges of keys out of all parts, and compares what falls into it.
   How many shares there are depends on the number of keys alone, so that memory is bounded whatever the corpus's size.
3. `Method.settle` puts together what was found, and writes for each part which rows go and why, or what is cut out of
   them; `settled` and `parts_after` read it.

The next method gets the parts as `parts_after` leaves them, so that what one drops is no longer there for the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import Dropped

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
        """Put together the results of all shares, in their order; writes what `settled` reads to the folder `out`."""
        ...


@dataclass(frozen=True)
class Settled:
    """What a method does to one part.

    Args:
        dropped: rows that it drops.
        cuts: stretches of the text of a row, [n, 2] with first byte and end in UTF-8, that it cuts out; sorted, apart.
    """

    dropped: Mapping[int, Dropped]
    cuts: Mapping[int, NDArray[np.int64]]


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

    def take(self, places: Array) -> Entries:
        """Those at some places, or where a mask is true."""
        begin = None if self.begin is None else self.begin[places]
        end = None if self.end is None else self.end[places]
        return Entries(self.key[places], self.row[places], begin, end)

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
        np.save(folder / f"{name}.begin.npy", entries.begin)
        np.save(folder / f"{name}.end.npy", entries.end)


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
    if not found:
        return Entries(np.empty(0, np.uint64), np.empty(0, np.int64))
    return _joined(found).in_order()


def _piece(part: Part, name: str, begin: int, end: int, first: int) -> Entries:
    def column(which: str, kind: type[np.generic]) -> Array:
        return np.load(part.keys / f"{name}.{which}.npy", mmap_mode="r")[begin:end].astype(kind)

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


def _joined(pieces: Sequence[Entries]) -> Entries:
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


def parts_after(parts: Sequence[Part], settled_in: Path) -> list[Part]:
    """The parts as a method leaves them, for the next one."""
    after = []
    for index, part in enumerate(parts):
        kept = settled_in / f"{index:05d}.kept.npy"
        after.append(replace(part, kept=kept) if kept.exists() else part)
    return after


def write_drops(
    parts: Sequence[Part], rows: NDArray[np.int64], instead: NDArray[np.int64], reason: str, out: Path
) -> None:
    """Write which documents go, each for another that stays.

    Args:
        parts: the corpus.
        rows: numbers of the documents that go, sorted.
        instead: numbers of those that stay.
        reason: why they go.
        out: folder for the results, made where it is absent.
    """
    out.mkdir(parents=True, exist_ok=True)
    first = starts(parts)
    for index, part in enumerate(parts):
        begin, end = np.searchsorted(rows, first[index : index + 2])
        if part.earlier or begin == end:
            continue
        here = rows[begin:end] - first[index]
        mask = part.mask()
        mask[here] = False
        np.save(out / f"{index:05d}.kept.npy", mask)
        np.save(out / f"{index:05d}.dropped.npy", here)
        np.save(out / f"{index:05d}.instead.npy", _ids(parts, first, instead[begin:end]))
    (out / "reason.txt").write_text(reason, encoding="utf-8")


def _ids(parts: Sequence[Part], first: NDArray[np.int64], numbers: NDArray[np.int64]) -> Array:
    found = np.empty(len(numbers), dtype="S32")
    owners = np.searchsorted(first, numbers, side="right") - 1
    for owner in np.unique(owners).tolist():
        here = owners == owner
        ids = np.load(parts[owner].keys / "id.npy", mmap_mode="r")
        found[here] = ids[numbers[here] - first[owner]]
    return found


def write_cuts(parts: Sequence[Part], index: int, cuts: Entries, out: Path) -> None:
    """Write what is cut out of one part: rows of the part, sorted, with stretches that do not touch."""
    assert cuts.begin is not None and cuts.end is not None
    if parts[index].earlier or not len(cuts):
        return
    np.save(out / f"{index:05d}.cuts.npy", np.stack([cuts.row, cuts.begin, cuts.end], axis=1))


def settled(settled_in: Path, index: int) -> Settled:
    """What a method does to one part, `index` being its place in the row of parts."""
    dropped: dict[int, Dropped] = {}
    rows = settled_in / f"{index:05d}.dropped.npy"
    if rows.exists():
        reason = (settled_in / "reason.txt").read_text(encoding="utf-8")
        instead = np.load(settled_in / f"{index:05d}.instead.npy").tolist()
        for row, kept in zip(np.load(rows).tolist(), instead, strict=True):
            dropped[row] = Dropped(reason, f"of {kept.decode()}")
    cuts = settled_in / f"{index:05d}.cuts.npy"
    return Settled(dropped, dict(_by_row(np.load(cuts))) if cuts.exists() else {})


def _by_row(cuts: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    begins = group_starts(cuts[:, 0])
    for begin, end in zip(begins, np.append(begins[1:], len(cuts)), strict=True):
        yield int(cuts[begin, 0]), cuts[begin:end, 1:]


def cut(text: str, cuts: Sequence[NDArray[np.int64]]) -> str:
    """A text without what one or several methods cut out of it.

    Args:
        text: as it was when the keys were written.
        cuts: stretches by each method, as in `Settled.cuts`.
    """
    data = text.encode()
    if not cuts:
        return text
    stays = np.ones(len(data), dtype=bool)
    for begin, end in np.concatenate(list(cuts)).tolist():
        stays[begin:end] = False
    return np.frombuffer(data, np.uint8)[stays].tobytes().decode()
