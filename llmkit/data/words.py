"""Words and word n-grams of many texts at once, as 64-bit hashes.

A word is a longest run of letters, digits and combining marks, without regard to case; a character of a script that is
written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) is a word by itself. Everything else stands
between words and counts for nothing. Hashes depend on the words alone: not on the run, the machine, or the texts
around.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llmkit.data.hashing import Hashes, Places, Running, mix, numbers_of

_LETTERS = 0x32400
"""No letter is assigned from here on."""
_ALONE = (
    *((0x0E00, 0x0F00), (0x1000, 0x10A0), (0x1780, 0x1800), (0x2E80, 0x2FE0), (0x3005, 0x3008), (0x3040, 0x3100)),
    *((0x31F0, 0x3200), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, _LETTERS)),
)
_FIRST_ALONE = _ALONE[0][0]
_WORD_BASE = np.uint64(0xD1342543DE82EF95)
_PIECE = 1 << 18


@dataclass(frozen=True, slots=True)
class Words:
    """The words of some texts, one text behind another; or their n-grams.

    Args:
        hashes: of each word, [words].
        begins: the first word of each text, and the number of words behind them, [texts + 1].
    """

    hashes: Hashes
    begins: Places

    @property
    def counts(self) -> Places:
        """How many words each text has, [texts]."""
        return np.diff(self.begins)


def words_of(texts: Sequence[str]) -> Words:
    """Words of texts, in order."""
    found: list[Hashes] = [np.empty(0, np.uint64)]
    begins = np.zeros(len(texts) + 1, np.int64)
    for piece, numbers in _pieces(texts):
        hashes, counts = _words_of_piece(piece)
        found.append(hashes)
        np.add.at(begins, np.array(numbers) + 1, counts)
    return Words(np.concatenate(found), np.cumsum(begins))


def word_bounds(text: str) -> tuple[Places, Places]:
    """First characters and ends of the words of a text: of those that `words_of` has the hashes of."""
    begins, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    before = 0
    for part in _divided(text):
        _, first, behind = _cut(part)
        begins.append(first + before)
        ends.append(behind + before)
        before += len(part)
    return np.concatenate(begins), np.concatenate(ends)


def ngrams(words: Words, n: int) -> Words:
    """Hashes of the n-grams of words in each text, in order; a text of 1 to n - 1 words is a single n-gram.

    Args:
        words: of the texts.
        n: words in an n-gram, at least 1.
    """
    counts, first = words.counts, words.begins[:-1]
    rolling = words.hashes
    short = np.zeros(len(counts), np.uint64)
    for size in range(1, n + 1):
        if size > 1:
            rolling = rolling[:-1] * _WORD_BASE + words.hashes[size - 1 :]
        if size < n:
            short[counts == size] = rolling[first[counts == size]]
    hashes = words.hashes.copy()
    hashes[: len(rolling)] = rolling
    is_short = (counts > 0) & (counts < n)
    hashes[first[is_short]] = short[is_short]
    kept = np.where(is_short, 1, np.maximum(counts - (n - 1), 0))
    places = np.arange(len(hashes)) - np.repeat(first, counts)
    inside = places < np.repeat(kept, counts)
    return Words(mix(hashes[inside]), np.concatenate([[0], np.cumsum(kept)]).astype(np.int64))


def _pieces(texts: Sequence[str]) -> Iterator[tuple[list[str], list[int]]]:
    """Texts together, as many as are quick to work on, with their numbers; a long one divided, at a space if it can."""
    piece: list[str] = []
    numbers: list[int] = []
    size = 0
    for number, text in enumerate(texts):
        for part in _divided(text):
            if piece and size + len(part) > _PIECE:
                yield piece, numbers
                piece, numbers, size = [], [], 0
            piece.append(part)
            numbers.append(number)
            size += len(part) + 1
    if piece:
        yield piece, numbers


def _divided(text: str) -> Iterator[str]:
    begin = 0
    while len(text) - begin > _PIECE:
        space = max(text.rfind(" ", begin, begin + _PIECE), text.rfind("\n", begin, begin + _PIECE))
        end = space if space > begin else begin + _PIECE
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _words_of_piece(texts: Sequence[str]) -> tuple[Hashes, Places]:
    """Hashes of the words, and how many each text has."""
    values, begins, ends = _cut("\n".join(texts))
    hashes = Running(values).hashes(begins, ends)
    lengths = np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts))
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    return hashes, np.diff(np.searchsorted(begins, bounds))


def _cut(text: str) -> tuple[Hashes, Places, Places]:
    """The number of each character, and first characters and ends of the words."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    values = _table()[np.minimum(codes, np.uint32(_LETTERS))]
    begins, ends = _bounds(values != 0, values, alone=bool(len(codes)) and int(codes.max()) >= _FIRST_ALONE)
    return values, begins, ends


def _bounds(inside: NDArray[np.bool_], values: Hashes, *, alone: bool) -> tuple[Places, Places]:
    """First characters and ends of the words, `values` being odd where a character is a word by itself."""
    padded = np.zeros(len(inside) + 2, dtype=bool)
    padded[1:-1] = inside
    changes = padded[1:] != padded[:-1]
    if not alone:
        places = np.flatnonzero(changes)
        return places[0::2], places[1::2]
    single = (values & np.uint64(1)).astype(bool)
    begins, ends = changes[:-1] & inside, changes[1:] & inside
    begins |= single
    begins[1:] |= single[:-1] & inside[1:]
    ends |= single
    ends[:-1] |= single[1:] & inside[:-1]
    return np.flatnonzero(begins), np.flatnonzero(ends) + 1


@lru_cache(maxsize=1)
def _table() -> Hashes:
    """The number of each code point: 0 between words, odd where it is a word by itself."""
    kinds = [unicodedata.category(chr(code))[0] for code in range(_LETTERS)]
    letters = np.array([kind in "LNM" for kind in kinds] + [False])
    numbers = numbers_of(np.array([ord(chr(code).lower()[0]) for code in range(_LETTERS)] + [0]))
    for begin, end in _ALONE:
        numbers[begin:end] |= np.uint64(1)
    numbers[~letters] = 0
    return numbers
