"""Lines and paragraphs that several documents have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
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
)
from llmkit.data.deduplication.results import save_cuts, settle_cuts
from llmkit.data.hashing import Hashes, Places, Running, numbers_of

_NEWLINE = 10
_SPACES = b" \t\n\r\x0b\x0c"
_PIECE = 1 << 20


class Units:
    """Cuts out units of text that at least so many documents have, but for those in the first few of them.

    Repetition within a document is no concern of this method: all copies in it stay, or none.

    Args:
        name: "lines" or "paragraphs".
        min_documents: units found in fewer documents are left alone.
        copies: in how many documents they stay.
    """

    def __init__(self, name: str, min_documents: int, copies: int) -> None:
        self.name = name
        self.settings: Mapping[str, Any] = {"name": name, "min_documents": min_documents, "copies": copies}
        self._min_documents = min_documents
        self._copies = copies

    def shares(self, parts: Sequence[Part]) -> int:
        """By the number of units."""
        return count_shares(parts, self.name)

    def find(self, parts: Sequence[Part], share: int, shares: int, out: Path) -> None:
        """Write where units of this share are to be cut out."""
        units = load_share(parts, self.name, share, shares)
        groups = group_starts(units.key)
        sizes = sizes_of(groups, len(units))
        # Which of the documents that have the unit this one is, from 1, and how many there are.
        first = np.zeros(len(units), dtype=np.int64)
        first[group_starts(units.key, units.row)] = 1
        running = np.cumsum(first)
        which = running - np.repeat(running[groups] - 1, sizes)
        documents = np.repeat(which[groups + sizes - 1], sizes)
        save_cuts(out, units.take((documents >= self._min_documents) & (which > self._copies)))

    def settle(self, parts: Sequence[Part], found: Sequence[Path], out: Path) -> None:
        """The cuts of all shares by part."""
        settle_cuts(parts, found, out)


def line_entries(texts: Sequence[str], min_characters: int) -> Entries:
    """Keys of lines, each with the newline behind it; equal for lines that differ in white space only."""
    return join_entries([no_entries(), *(_keyed(piece, piece.lines(), min_characters) for piece in _pieces(texts))])


def paragraph_entries(texts: Sequence[str], min_characters: int) -> Entries:
    """Keys of runs of lines that are not blank, each with the blank lines behind it, white space aside."""
    return join_entries(
        [no_entries(), *(_keyed(piece, piece.paragraphs(), min_characters) for piece in _pieces(texts))]
    )


@dataclass(frozen=True)
class _Piece:
    """Some texts, or parts of them, one behind another with a newline between.

    Args:
        data: their UTF-8 bytes.
        starts: where each begins, and the length of the data, [texts + 1].
        row: number of each one's document, [texts].
        offset: its place in that, in bytes, [texts].
    """

    data: NDArray[np.uint8]
    starts: Places
    row: Places
    offset: Places

    def lines(self) -> tuple[Places, Places]:
        """Where lines begin and end, the newline behind them counted to them."""
        ends = np.flatnonzero(self.data == _NEWLINE) + 1
        return np.concatenate([[0], ends[:-1]]).astype(np.int64), ends

    def paragraphs(self) -> tuple[Places, Places]:
        """Where paragraphs begin, and where the next one or another text does."""
        begins, ends = self.lines()
        letters = np.concatenate([[0], np.cumsum(_weights()[self.data] != 0)])
        blank = letters[ends] == letters[begins]
        fresh = np.isin(begins, self.starts, assume_unique=True)
        after_blank = np.concatenate([[True], blank[:-1]])
        places = np.flatnonzero((~blank & after_blank) | fresh)
        return begins[places], np.append(begins[places[1:]], len(self.data))


def _keyed(piece: _Piece, bounds: tuple[Places, Places], min_characters: int) -> Entries:
    """Entries of the units of a piece that are long enough, white space not counted."""
    begins, ends = bounds
    numbers = _weights()[piece.data]
    solid = numbers != 0
    # Bytes that continue a character are none.
    characters = np.concatenate([[0], np.cumsum(solid & ((piece.data & 0xC0) != 0x80))])
    long = characters[ends] - characters[begins] >= min_characters
    begins, ends = begins[long], ends[long]
    places = np.cumsum(solid) - solid
    keys = Running(numbers, places).hashes(begins, ends)
    text = np.searchsorted(piece.starts, begins, side="right") - 1
    inside = np.minimum(ends, piece.starts[text + 1] - 1)
    shift = piece.offset[text] - piece.starts[text]
    return Entries(keys, piece.row[text], begins + shift, inside + shift)


def _pieces(texts: Sequence[str]) -> Iterator[_Piece]:
    """Texts together, as many as are quick to work on; a long one is divided, between paragraphs or lines if it can."""
    parts: list[bytes] = []
    rows: list[int] = []
    offsets: list[int] = []
    size = 0
    for row, text in enumerate(texts):
        data = text.encode()
        for begin, end in _divided(data):
            if parts and size + end - begin > _PIECE:
                yield _piece(parts, rows, offsets)
                parts, rows, offsets, size = [], [], [], 0
            parts.append(data[begin:end])
            rows.append(row)
            offsets.append(begin)
            size += end - begin + 1
    if parts:
        yield _piece(parts, rows, offsets)


def _piece(parts: Sequence[bytes], rows: Sequence[int], offsets: Sequence[int]) -> _Piece:
    data = np.frombuffer(b"\n".join(parts) + b"\n", np.uint8)
    starts = np.concatenate([[0], np.cumsum([len(part) + 1 for part in parts])]).astype(np.int64)
    return _Piece(data, starts, np.array(rows, np.int64), np.array(offsets, np.int64))


def _divided(data: bytes) -> Iterator[tuple[int, int]]:
    begin = 0
    while len(data) - begin > _PIECE:
        end = data.rfind(b"\n\n", begin, begin + _PIECE) + 2
        if end <= begin + 2:
            end = data.rfind(b"\n", begin, begin + _PIECE) + 1
        if end <= begin:
            end = begin + _PIECE
            while data[end] & 0xC0 == 0x80:
                end -= 1
        yield begin, end
        begin = end
    yield begin, len(data)


@lru_cache(maxsize=1)
def _weights() -> Hashes:
    """A number for each byte, 0 for white space."""
    numbers = numbers_of(np.arange(256))
    numbers[list(_SPACES)] = 0
    return numbers
