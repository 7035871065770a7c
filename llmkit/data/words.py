"""Words and word n-grams of many texts at once, as 64-bit hashes.

A word is a longest run of letters, digits and combining marks, without regard to case; a character of a script that is
written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) is a word by itself. Everything else stands
between words and counts for nothing. Hashes depend on the words alone: not on the run, the machine, or the texts
around.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llmkit.data.hashing import Hashes, Places, mix

_LETTERS = 0x32400
"""No letter is assigned from here on."""
_ALONE = (
    *((0x0E00, 0x0F00), (0x1000, 0x10A0), (0x1780, 0x1800), (0x2E80, 0x2FE0), (0x3005, 0x3008), (0x3040, 0x3100)),
    *((0x31F0, 0x3200), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, _LETTERS)),
)
_SINGLE = 1 << 31
"""Marks a character that is a word by itself."""
_LEAST = (0, 0x80, 0x800, 0x10000, 0x110000)
"""The least code points of 1, 2, 3 and 4 bytes in UTF-8, and the first that is none."""
_DENSE = 1.1
"""Bytes for a character from which code points are quicker."""
_FIRST_BYTES = np.array([(1 << (8 * count)) - 1 for count in range(9)], np.uint64)
_LONG = 64
"""Bytes of a word that are hashed together with other words."""
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
        cut = _cut_by_code_points([part])
        begins.append(cut.characters(cut.begins) + before)
        ends.append(cut.characters(cut.ends) + before)
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
    cut = _cut(texts)
    return _hashes(cut), np.diff(np.searchsorted(cut.begins, cut.texts))


@dataclass(frozen=True, slots=True)
class _Cut:
    """Texts one behind another, in UTF-8, cut into words.

    Args:
        data: words in small letters, bytes of 0 between them, and eight behind the last. Where texts were cut by code
            points, each character between words is one byte.
        begins: first bytes of the words.
        ends: ends of them.
        texts: where each text begins, and a place behind them, [texts + 1].
    """

    data: NDArray[np.uint8]
    begins: Places
    ends: Places
    texts: Places

    def characters(self, places: Places) -> Places:
        """How many characters begin before some bytes, of texts that were cut by code points."""
        before = np.zeros(len(self.data) + 1, np.int64)
        np.cumsum(self.data & 0xC0 != 0x80, out=before[1:])
        return before[places]


def _cut(texts: Sequence[str]) -> _Cut:
    """Cut texts into words."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    joined = b"\n".join(parts)
    if len(joined) < _DENSE * sum(map(len, texts)) + len(texts):
        data = np.frombuffer(bytearray(joined.translate(_ascii()) + bytes(8)), np.uint8)
        if joined.isascii() or _fold(data):
            return _Cut(data, *_bounds(data), _starts(parts))
    return _cut_by_code_points(texts)


def _starts(parts: Sequence[bytes]) -> Places:
    """Where each begins with a byte between them, and a place behind them."""
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    return np.concatenate([[0], np.cumsum(lengths + 1)])


def _fold(data: NDArray[np.uint8]) -> bool:
    """Characters beyond ASCII in small letters, or 0 where they stand between words, in place.

    Returns:
        whether that is done: not with a letter whose small one takes another number of bytes, or which is a word.
    """
    for width, mark in ((2, 0xC0), (3, 0xE0), (4, 0xF0)):
        first = np.flatnonzero((data >= mark) & (data < (mark >> 1 | 0x80)))
        codes = (data[first] - np.uint8(mark)).astype(np.uint32)
        for place in range(1, width):
            codes = (codes << 6 | (data[first + place] & 0x3F)).astype(np.uint32)
        small = _table()[np.minimum(codes, _LETTERS)]
        letter = small != 0
        if (letter & ((small < _LEAST[width - 1]) | (small >= _LEAST[width]))).any():
            return False
        for place in range(width - 1, 0, -1):
            data[first + place] = (small & 0x3F | 0x80) * letter
            small >>= 6
        data[first] = (small | mark) * letter
    return True


def _cut_by_code_points(texts: Sequence[str]) -> _Cut:
    """The same where many characters are beyond ASCII, and for all of them."""
    text = "\n".join(texts)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    small = _table()[np.minimum(codes, np.uint32(_LETTERS))]
    single = np.flatnonzero(small & _SINGLE) if codes.max(initial=0) >= _FIRST_ALONE else None
    folded = (small & (_SINGLE - 1)).tobytes().decode("utf-32-le")
    ends = np.cumsum([len(text) + 1 for text in texts]).tolist()
    parts = [folded[end - len(text) - 1 : end - 1].encode() for text, end in zip(texts, ends, strict=True)]
    data = np.frombuffer(b"\0".join(parts) + bytes(9), np.uint8)
    if single is None:
        return _Cut(data, *_bounds(data), _starts(parts))
    first = np.flatnonzero(data & 0xC0 != 0x80)
    return _Cut(data, *_bounds(data, (first[single], first[single + 1])), _starts(parts))


def _hashes(cut: _Cut) -> Hashes:
    """Of all words: eight bytes at a time, or by BLAKE2 where that takes long."""
    # Eight bytes from every place on, as a number.
    eight = np.ndarray((len(cut.data) - 7,), "<u8", cut.data, strides=(1,))
    lengths = cut.ends - cut.begins
    hashes = mix(eight[cut.begins] & _FIRST_BYTES[np.minimum(lengths, 8)])
    some = np.flatnonzero(lengths > 8)
    for done in range(8, _LONG, 8):
        left = lengths[some] - done
        more = eight[cut.begins[some] + done] & _FIRST_BYTES[np.minimum(left, 8)]
        hashes[some] = mix(hashes[some] * _WORD_BASE + more)
        some = some[left > 8]
    for place in some.tolist():
        word = cut.data[cut.begins[place] : cut.ends[place]].tobytes()
        hashes[place] = int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little")
    return hashes


def _bounds(data: NDArray[np.uint8], alone: tuple[Places, Places] | None = None) -> tuple[Places, Places]:
    """First bytes and ends of the words; `alone` are those of characters that are words by themselves."""
    inside = np.zeros(len(data) + 1, dtype=bool)
    np.not_equal(data, 0, out=inside[1:])
    if alone is None:
        places = np.flatnonzero(inside[1:] != inside[:-1])
        return places[0::2], places[1::2]
    before, here = inside[:-1], inside[1:]
    begins = here & ~before
    begins[alone[0]] = True
    begins[alone[1][here[alone[1]]]] = True
    return np.flatnonzero(begins), np.flatnonzero(before & (begins | ~here))


@lru_cache(maxsize=1)
def _ascii() -> bytes:
    """What becomes of each byte: those beyond ASCII stay."""
    return bytes(_table()[:128].tolist()) + bytes(range(128, 256))


@lru_cache(maxsize=1)
def _table() -> NDArray[np.uint32]:
    """The small letter of each code point: 0 between words, marked where it is a word by itself."""
    found = np.zeros(_LETTERS + 1, np.uint32)
    for code in range(_LETTERS):
        if unicodedata.category(chr(code))[0] in "LNM":
            found[code] = ord(chr(code).lower()[0])
    for begin, end in _ALONE:
        found[begin:end] |= np.where(found[begin:end] != 0, np.uint32(_SINGLE), np.uint32(0))
    return found
