"""What methods find, on disk: which rows of a part go and why, and what is cut out of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import Dropped
from llmkit.data.deduplication.base import Array, Entries, Part, group_starts, starts

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Settled:
    """What a method does to one part.

    Args:
        dropped: rows that it drops.
        cuts: what it cuts out of rows: [n, 2] each, first bytes and ends in UTF-8, sorted, apart from one another.
    """

    dropped: Mapping[int, Dropped]
    cuts: Mapping[int, NDArray[np.int64]]


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


def parts_after(parts: Sequence[Part], settled_in: Path) -> list[Part]:
    """The parts as a method leaves them, for the next one."""
    after = []
    for index, part in enumerate(parts):
        kept = settled_in / f"{index:05d}.kept.npy"
        after.append(replace(part, kept=kept) if kept.exists() else part)
    return after


def cut(text: str, cuts: Sequence[NDArray[np.int64]]) -> str:
    """A text without what one or several methods cut out of it; a character of which a byte is left stays.

    Args:
        text: as it was when the keys were written.
        cuts: stretches by each method, as in `Settled.cuts`.
    """
    if not cuts:
        return text
    data = text.encode()
    stays = np.ones(len(data), dtype=bool)
    for begin, end in np.concatenate(list(cuts)).tolist():
        stays[begin:end] = False
    values = np.frombuffer(data, np.uint8)
    if not text.isascii():
        characters = np.flatnonzero((values & 0xC0) != 0x80)
        lengths = np.diff(np.append(characters, len(values)))
        stays = np.repeat(np.logical_or.reduceat(stays, characters), lengths)
    return values[stays].tobytes().decode()


def save_pairs(out: Path, rows: NDArray[np.int64], others: NDArray[np.int64]) -> None:
    """Write pairs of documents, sorted, each once."""
    out.mkdir(parents=True, exist_ok=True)
    order = np.lexsort((others, rows))
    rows, others = rows[order], others[order]
    once = group_starts(rows, others)
    np.save(out / "pairs.npy", np.stack([rows[once], others[once]]))


def load_pairs(found: Sequence[Path]) -> Pairs:
    """Pairs of all shares, sorted."""
    pairs = np.concatenate([np.load(folder / "pairs.npy") for folder in found], axis=1)
    order = np.lexsort((pairs[1], pairs[0]))
    return pairs[0][order], pairs[1][order]


def settle_drops(
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
    (out / "reason.txt").write_text(reason, encoding="utf-8")
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


def save_cuts(out: Path, cuts: Entries) -> None:
    """Write what one share cuts out, sorted by the numbers of documents."""
    assert cuts.begin is not None and cuts.end is not None
    out.mkdir(parents=True, exist_ok=True)
    found = np.stack([cuts.row, cuts.begin, cuts.end])
    np.save(out / "cuts.npy", found[:, np.lexsort((cuts.begin, cuts.row))])


def settle_cuts(parts: Sequence[Part], found: Sequence[Path], out: Path) -> None:
    """Write what all shares cut out of each part, a part at a time."""
    out.mkdir(parents=True, exist_ok=True)
    shares = [np.load(folder / "cuts.npy", mmap_mode="r") for folder in found]
    first = starts(parts)
    for index, part in enumerate(parts):
        if part.earlier:
            continue
        bounds = [np.searchsorted(share[0], first[index : index + 2]) for share in shares]
        cuts = np.concatenate([share[:, low:high] for share, (low, high) in zip(shares, bounds, strict=True)], axis=1)
        if cuts.shape[1]:
            np.save(out / f"{index:05d}.cuts.npy", merge(cuts[0] - first[index], cuts[1], cuts[2]))


def merge(row: NDArray[np.int64], begin: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """Stretches that overlap or touch as one, sorted: row, beginning and end of each, [n, 3]."""
    if not len(row):
        return np.empty((0, 3), np.int64)
    order = np.lexsort((begin, row))
    row, begin, end = row[order], begin[order], end[order]
    # The furthest end so far within a row: rows are laid behind one another, further apart than any text is long.
    width = np.int64(1 << 40)
    reach = np.maximum.accumulate(end + row * width)
    fresh = np.ones(len(row), dtype=bool)
    fresh[1:] = begin[1:] + row[1:] * width > reach[:-1]
    places = np.flatnonzero(fresh)
    last = np.append(places[1:], len(row)) - 1
    return np.stack([row[places], begin[places], reach[last] - row[places] * width], axis=1)


def _by_row(cuts: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    begins = group_starts(cuts[:, 0])
    for begin, end in zip(begins, np.append(begins[1:], len(cuts)), strict=True):
        yield int(cuts[begin, 0]), cuts[begin:end, 1:]


def _ids(parts: Sequence[Part], first: NDArray[np.int64], numbers: NDArray[np.int64]) -> Array:
    found = np.empty(len(numbers), dtype="S32")
    owners = np.searchsorted(first, numbers, side="right") - 1
    for owner in np.unique(owners).tolist():
        here = owners == owner
        ids = np.load(parts[owner].keys / "id.npy", mmap_mode="r")
        found[here] = ids[numbers[here] - first[owner]]
    return found
