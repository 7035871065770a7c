"""Stretches of text that have come before, to the byte, in bounded memory.

A window is a stretch of exactly `min_bytes` bytes; a byte is cut out where some window around it stands earlier in the
corpus too. Each window has an anchor, the 32 bytes in it with the least hash (winnowing: Schleimer, Wilkerson & Aiken,
SIGMOD 2003): equal windows have equal anchors. So the windows around all places of one anchor can be compared by
themselves, by a suffix array of the text around these places alone, and the union over all anchors is what a suffix
array of the whole corpus would give. Anchors that stand in one place only need no text at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.deduplication.base import (
    Entries,
    Part,
    count_shares,
    group_starts,
    join_entries,
    load_share,
    no_entries,
    sizes_of,
    starts,
)
from llmkit.data.deduplication.results import merge, save_cuts, settle_cuts
from llmkit.data.hashing import Hashes, Places, Running, numbers_of
from llmkit.errors import MissingDependencyError

_ANCHOR = 32
_PIECE = 1 << 20
_ENTRIES = 1 << 20
_COMPARED = 1 << 24
"""Bytes of text in one suffix array, which takes some 30 times as many in memory."""
_BREAK = 0xFF
"""A byte that no UTF-8 text has."""
TEXT = "text.bin"
TEXT_STARTS = "text.start.npy"


def anchor_entries(texts: Sequence[str], min_bytes: int) -> Entries:
    """The anchors of all windows in texts, each place once."""
    return join_entries([no_entries(), *(_anchors(*piece, min_bytes) for piece in _pieces(texts, min_bytes))])


class Substrings:
    """Cuts out stretches that have come before, in an earlier document or earlier in the same one.

    A stretch that comes so often that the text around its places does not fit a suffix array is compared with its first
    places only.

    Args:
        min_bytes: length of a window.
    """

    name = "substrings"

    def __init__(self, min_bytes: int) -> None:
        self.settings: Mapping[str, Any] = {"min_bytes": min_bytes}
        self._min_bytes = min_bytes

    def shares(self, parts: Sequence[Part]) -> int:
        """By the number of anchors."""
        return count_shares(parts, self.name, _ENTRIES)

    def find(self, parts: Sequence[Part], share: int, shares: int, out: Path) -> None:
        """Write which stretches around the anchors of this share have come before.

        Raises:
            MissingDependencyError: pydivsufsort is not installed.
        """
        anchors = load_share(parts, self.name, share, shares)
        groups = group_starts(anchors.key)
        anchors = anchors.take(np.repeat(sizes_of(groups, len(anchors)) > 1, sizes_of(groups, len(anchors))))
        found = [np.empty((0, 3), np.int64)]
        with _Texts(parts) as texts:
            for batch in self._batches(anchors):
                found.append(self._compare(batch, texts))
        row, begin, end = np.concatenate(found).T
        cuts = merge(row, begin, end).T
        save_cuts(out, Entries(np.zeros(len(cuts[0]), np.uint64), *cuts))

    def settle(self, parts: Sequence[Part], found: Sequence[Path], out: Path) -> None:
        """The cuts of all shares by part."""
        settle_cuts(parts, found, out)

    def _batches(self, anchors: Entries) -> Iterator[Entries]:
        """Anchors whose surroundings fit a suffix array, all places of one together as far as they fit."""
        room = max(2, _COMPARED // (2 * self._min_bytes))
        groups = group_starts(anchors.key)
        ends = groups + sizes_of(groups, len(anchors))
        begin = 0
        for low, high in zip(groups.tolist(), ends.tolist(), strict=True):
            if high - begin > room and low > begin:
                yield anchors.take(slice(begin, low))
                begin = low
            if high - low > room:
                first = np.arange(low, low + room // 2)
                for next_ones in range(low + room // 2, high, room - room // 2):
                    others = np.arange(next_ones, min(next_ones + room - room // 2, high))
                    yield anchors.take(np.concatenate([first, others]))
                begin = high
        if begin < len(anchors):
            yield anchors.take(slice(begin, None))

    def _compare(self, anchors: Entries, texts: _Texts) -> NDArray[np.int64]:
        """Stretches around some anchors that stand more than once, but for the first place: row, begin and end."""
        assert anchors.begin is not None and anchors.end is not None
        around = self._min_bytes
        begin = np.maximum(anchors.end - around, 0)
        end = np.minimum(anchors.begin + around, texts.length(anchors.row))
        regions = merge(anchors.row, begin, end)
        data = texts.read(regions)
        repeated = repeated_windows(data, around)
        # Of each byte: how many of these windows it is in.
        steps = np.zeros(len(data) + 1, np.int32)
        np.add.at(steps, repeated, 1)
        np.add.at(steps, repeated + around, -1)
        inside = np.zeros(len(data) + 2, dtype=bool)
        inside[1:-1] = np.cumsum(steps[:-1]) > 0
        bounds = np.flatnonzero(inside[1:] != inside[:-1])
        cut_begin, cut_end = bounds[0::2], bounds[1::2]
        region_starts = np.concatenate([[0], np.cumsum(regions[:, 2] - regions[:, 1] + 1)])
        region = np.searchsorted(region_starts, cut_begin, side="right") - 1
        shift = regions[region, 1] - region_starts[region]
        return np.stack([regions[region, 0], cut_begin + shift, cut_end + shift], axis=1)


def repeated_windows(data: NDArray[np.uint8], size: int) -> NDArray[np.int64]:
    """Where windows begin that stand earlier in the data too; windows with a break in them are none.

    Args:
        data: bytes, pieces of text with a break (0xFF) behind each.
        size: length of a window.

    Raises:
        MissingDependencyError: pydivsufsort is not installed.
    """
    try:
        from pydivsufsort import divsufsort, kasai
    except ImportError:
        raise MissingDependencyError(
            "repeated substrings need pydivsufsort, which is not installed.", hint="pip install 'llmkit[data]'"
        ) from None
    if not len(data):
        return np.empty(0, np.int64)
    suffixes = divsufsort(data)
    common = kasai(data, suffixes)
    begins = np.flatnonzero(np.concatenate([[True], common[:-1] < size]))
    first = np.repeat(np.minimum.reduceat(suffixes, begins), sizes_of(begins, len(suffixes)))
    found = suffixes[suffixes != first].astype(np.int64)
    breaks = np.append(np.flatnonzero(data == _BREAK), len(data))
    whole: NDArray[np.int64] = found[breaks[np.searchsorted(breaks, found)] - found >= size]
    return whole


class _Texts:
    """The texts of a corpus as bytes on disk, read by stretches; a context manager."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._first = starts(parts)
        self._files: dict[int, int] = {}

    def __enter__(self) -> _Texts:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            os.close(file)

    def length(self, rows: Places) -> Places:
        """How many bytes the texts of these documents have."""
        found = np.empty(len(rows), np.int64)
        for part, here in self._by_part(rows):
            bounds = np.load(self._parts[part].keys / TEXT_STARTS, mmap_mode="r")
            at = rows[here] - self._first[part]
            found[here] = bounds[at + 1] - bounds[at]
        return found

    def read(self, regions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Stretches of documents, given by number, first byte and end, with a break behind each."""
        offsets = np.empty(len(regions), np.int64)
        owners = np.empty(len(regions), np.int64)
        for part, here in self._by_part(regions[:, 0]):
            bounds = np.load(self._parts[part].keys / TEXT_STARTS, mmap_mode="r")
            offsets[here] = bounds[regions[here, 0] - self._first[part]] + regions[here, 1]
            owners[here] = part
        lengths = regions[:, 2] - regions[:, 1]
        places = zip(owners.tolist(), offsets.tolist(), lengths.tolist(), strict=True)
        pieces = [os.pread(self._file(owner), length, offset) for owner, offset, length in places]
        return np.frombuffer(bytearray(b"".join(piece + b"\xff" for piece in pieces)), np.uint8)

    def _by_part(self, rows: Places) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        owners = np.searchsorted(self._first, rows, side="right") - 1
        for part in np.unique(owners).tolist():
            yield part, owners == part

    def _file(self, part: int) -> int:
        if part not in self._files:
            if len(self._files) >= _OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[part] = os.open(self._parts[part].keys / TEXT, os.O_RDONLY)
        return self._files[part]


_OPEN = 128


def _anchors(data: bytes, bounds: Places, row: Places, offset: Places, min_bytes: int) -> Entries:
    """Anchors of windows inside each of some texts that stand one behind another.

    Args:
        data: bytes of the texts.
        bounds: where each begins, and the length of the data, [texts + 1].
        row: number of each one's document, [texts].
        offset: its place in that, [texts].
        min_bytes: length of a window.
    """
    values = np.frombuffer(data, np.uint8)
    begins = np.arange(len(values) - _ANCHOR + 1)
    hashes = Running(numbers_of(np.arange(256))[values]).hashes(begins, begins + _ANCHOR)
    chosen = _least(hashes, min_bytes - _ANCHOR + 1)
    windows = np.zeros(len(chosen) + 1, np.int32)
    lengths = np.diff(bounds)
    some = lengths >= min_bytes
    windows[bounds[:-1][some]] += 1
    windows[bounds[1:][some] - min_bytes + 1] -= 1
    anchors = np.unique(chosen[np.cumsum(windows[:-1]) > 0])
    text = np.searchsorted(bounds, anchors, side="right") - 1
    place = anchors - bounds[text] + offset[text]
    return Entries(hashes[anchors], row[text], place, place + _ANCHOR)


def _least(hashes: Hashes, window: int) -> Places:
    """The place of the least of each `window` hashes in a row, the first of equals (van Herk, 1992).

    Hashes are compared by their higher bits; places fill the lower ones.
    """
    bits = np.uint64(len(hashes).bit_length())
    low = (np.uint64(1) << bits) - np.uint64(1)
    blocks = -(-len(hashes) // window)
    ranked = np.full(blocks * window, ~np.uint64(0))
    ranked[: len(hashes)] = (hashes & ~low) | np.arange(len(hashes), dtype=np.uint64)
    grid = ranked.reshape(blocks, window)
    ahead = np.minimum.accumulate(grid, axis=1).ravel()
    behind = np.minimum.accumulate(grid[:, ::-1], axis=1)[:, ::-1].ravel()
    count = len(hashes) - window + 1
    return (np.minimum(behind[:count], ahead[window - 1 : window - 1 + count]) & low).astype(np.int64)


def _pieces(texts: Sequence[str], min_bytes: int) -> Iterator[tuple[bytes, Places, Places, Places]]:
    """Texts that have a window, as many together as are quick to work on; long ones in parts that overlap."""
    parts: list[bytes] = []
    places: list[tuple[int, int]] = []
    size = 0
    for row, text in enumerate(texts):
        data = text.encode()
        for begin in range(0, len(data) - min_bytes + 1, _PIECE):
            part = data[begin : begin + _PIECE + min_bytes - 1]
            if parts and size + len(part) > _PIECE:
                yield _piece(parts, places)
                parts, places, size = [], [], 0
            parts.append(part)
            places.append((row, begin))
            size += len(part)
    if parts:
        yield _piece(parts, places)


def _piece(parts: Sequence[bytes], places: Sequence[tuple[int, int]]) -> tuple[bytes, Places, Places, Places]:
    bounds = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    row, offset = np.array(places, np.int64).T
    return b"".join(parts), bounds, row, offset
