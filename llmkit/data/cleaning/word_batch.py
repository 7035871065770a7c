"""The words of whole batches of texts as arrays.

Every run of characters between white space is looked up in a dictionary; only runs that are new go through the rules.
Everything about a word is a function of its characters, so what has gone through the dictionary before changes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.config import WordRules
from llmkit.data.cleaning.english import english_exceptions, general_exceptions
from llmkit.data.cleaning.terminals import SENTENCE_ENDS, SYMBOLS
from llmkit.data.cleaning.word_rules import Rules

SYMBOL, ALPHABETIC, ENDS_SENTENCE, PUNCTUATION = 1, 2, 4, 8
"""What may hold of a word: only symbols in it; a letter in it; a sign that ends sentences; only punctuation in it."""

Hashes = NDArray[np.uint64]
Counts = NDArray[np.int64]

_BASE = 0x9E3779B97F4A7C15
_RUNS = 1 << 20
_LEXICON_CHARACTERS = 1 << 25
"""What a lexicon may hold before a new one is begun."""
_LAST_WORDS = 1 << 23
"""Words of the batches that were cut last, which are kept for the next filter of the same texts."""
_CHARACTERS = 1 << 20
_GROUP_CHARACTERS = 1 << 19
_HASHED_AT_ONCE = 1 << 16
_SPACE = re.compile(r"\s")


@dataclass
class WordBatch:
    """The words of some texts, one text behind another.

    Args:
        numbers: of each word in the lexicon, [words]; they hold until the next batch is cut.
        starts: the first word of each text, and the number of words behind them, [texts + 1].
        lexicon: which knows the words by their numbers.
    """

    numbers: NDArray[np.int32]
    starts: Counts
    lexicon: Lexicon

    @cached_property
    def counts(self) -> Counts:
        """How many words each text has, [texts]."""
        return np.diff(self.starts)

    @cached_property
    def texts(self) -> NDArray[np.int32]:
        """Which text each word is of, [words]."""
        return np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)

    @cached_property
    def before(self) -> Counts:
        """Characters of all words before each word, and of all words behind them, [words + 1]."""
        before = np.zeros(len(self.numbers) + 1, np.int64)
        np.cumsum(self.lexicon.lengths(self.numbers), out=before[1:])
        return before

    @property
    def lengths(self) -> Counts:
        """Characters of each word, [words]."""
        return np.diff(self.before)

    @cached_property
    def flags(self) -> NDArray[np.uint8]:
        """What holds of each word, [words]."""
        return self.lexicon.flags(self.numbers)

    def sum(self, values: NDArray[Any]) -> Counts:
        """Sum over the words of each text of a value for each word, [texts]."""
        sums = np.zeros(len(values) + 1, np.int64)
        np.cumsum(values, out=sums[1:])
        return np.diff(sums[self.starts])

    def having(self, flag: int) -> Counts:
        """How many words of each text have a flag, [texts]."""
        return self.sum((self.flags & flag) != 0)

    def different(self, words: Sequence[str]) -> Counts:
        """How many of the words given each text has, each counted once, [texts]."""
        column = np.full(self.lexicon.size, -1, np.int16)
        for index, word in enumerate(words):
            number = self.lexicon.number(word)
            if number is not None:
                column[number] = index
        which = column[self.numbers]
        hits = np.flatnonzero(which >= 0)
        found = np.zeros((len(self.counts), len(words)), bool)
        found[self.texts[hits], which[hits]] = True
        counts: Counts = found.sum(1).astype(np.int64)
        return counts


class Lexicon:
    """Runs of characters and the words that they are cut into, in order of appearance.

    Args:
        rules: which cut runs.
    """

    def __init__(self, rules: Rules) -> None:
        self.runs = _Numbers(self._add_run)
        self.characters = 0
        self._rules = rules
        self._words = _Numbers(self._add_word)
        self._starts = array("q", [0])
        self._pieces = array("i")
        self._lengths = array("q")
        self._flags = array("B")
        self._hashes = array("Q")
        self._powers = array("Q")
        self._new: list[str] = []
        self._not_hashed: list[str] = []

    @property
    def size(self) -> int:
        """How many words there are."""
        return len(self._words)

    def lengths(self, numbers: NDArray[np.int32]) -> Counts:
        """Characters of words."""
        self._settle()
        return _view(self._lengths, np.int64)[numbers]

    def flags(self, numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Flags of words."""
        self._settle()
        return _view(self._flags, np.uint8)[numbers]

    def hashes(self, numbers: NDArray[np.int32]) -> tuple[Hashes, Hashes]:
        """Of each word the polynomial modulo 2^64 in an odd base whose coefficients are the characters; and the base
        to the power of its length, by which the hash of what stands before is multiplied where both are put together.
        """
        self._settle()
        if self._not_hashed:
            hashes, powers = _hashes(self._not_hashed)
            self._hashes.frombytes(hashes.tobytes())
            self._powers.frombytes(powers.tobytes())
            self._not_hashed = []
        return _view(self._hashes, np.uint64)[numbers], _view(self._powers, np.uint64)[numbers]

    def number(self, word: str) -> int | None:
        """Of a word that has come before."""
        return self._words.get(word)

    def words(self, runs: NDArray[np.int32]) -> tuple[NDArray[np.int32], Counts]:
        """Numbers of the words of runs, and how many words each run has."""
        starts = _view(self._starts, np.int64)
        first = starts[runs]
        counts = starts[runs + 1] - first
        before = np.cumsum(counts) - counts
        places = np.repeat(first - before, counts) + np.arange(int(counts.sum()))
        return _view(self._pieces, np.int32)[places], counts

    def _add_run(self, run: str) -> int:
        self._pieces.extend(map(self._words.__getitem__, self._rules.split(run)))
        self._starts.append(len(self._pieces))
        self.characters += len(run)
        return len(self._starts) - 2

    def _add_word(self, word: str) -> int:
        self._new.append(word)
        return len(self._words)

    def _settle(self) -> None:
        """Look at the words that have come since."""
        if self._new:
            self._lengths.extend(map(len, self._new))
            self._flags.extend(map(_flags, self._new))
            self._not_hashed += self._new
            self._new = []


def _view(values: array[Any], kind: Any) -> NDArray[Any]:
    """An array without a copy, to be indexed and let go at once: as long as it is there, nothing can be appended."""
    return np.frombuffer(values, kind) if values else np.zeros(0, kind)


class _Numbers(dict[str, int]):
    """Numbers of runs or words; one that is not there is added."""

    def __init__(self, add: Any) -> None:
        super().__init__()
        self._add = add

    def __missing__(self, key: str) -> int:
        number: int = self._add(key)
        self[key] = number
        return number


class Words:
    """Cuts texts into words.

    Args:
        rules: by which words are cut.
    """

    def __init__(self, rules: WordRules) -> None:
        self._rules = Rules(english_exceptions() if rules == "english" else general_exceptions())
        self._lexicon = Lexicon(self._rules)
        self._last: dict[bytes, tuple[NDArray[np.int32], Counts]] = {}
        self._last_words = 0

    def of(self, texts: Sequence[str]) -> WordBatch:
        """The words of each text."""
        if len(self._lexicon.runs) > _RUNS or self._lexicon.characters > _LEXICON_CHARACTERS:
            self._lexicon = Lexicon(self._rules)
            self._last, self._last_words = {}, 0
        key = _digest(texts)
        if key not in self._last:
            self._last[key] = numbers, _ = self._cut(texts)
            self._last_words += len(numbers)
            while self._last_words > _LAST_WORDS and len(self._last) > 1:
                oldest, _ = self._last.pop(next(iter(self._last)))
                self._last_words -= len(oldest)
        return WordBatch(*self._last[key], self._lexicon)

    def _cut(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], Counts]:
        number = self._lexicon.runs.__getitem__
        found = [np.zeros(0, np.int32)]
        counts = np.zeros(len(texts), np.int64)
        for pieces in _pieces(texts):
            runs = [piece.split() for _, piece in pieces]
            numbers = [np.fromiter(map(number, some), np.int32, len(some)) for some in runs]
            ends = np.cumsum([0, *map(len, runs)])
            words, words_of_each = self._lexicon.words(np.concatenate(numbers))
            found.append(words)
            np.add.at(counts, [index for index, _ in pieces], np.diff(_starts(words_of_each)[ends]))
        return np.concatenate(found), _starts(counts)


@cache
def words_by(rules: WordRules) -> Words:
    """The words that all filters of a process share, since cutting a run for the first time is the slow part."""
    return Words(rules)


def in_groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in their order, as many at a time as are quick to work on."""
    group: list[str] = []
    characters = 0
    for text in texts:
        if group and characters + len(text) > _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
        group.append(text)
        characters += len(text) + 1
    if group:
        yield group


def _digest(texts: Sequence[str]) -> bytes:
    digest = blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()


def _starts(counts: Counts) -> Counts:
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def _pieces(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Texts with their numbers, as many at a time as hold few words; long ones in parts, cut at white space."""
    pieces: list[tuple[int, str]] = []
    characters = 0
    for index, text in enumerate(texts):
        begin = 0
        while begin < len(text):
            space = _SPACE.search(text, begin + _CHARACTERS) if len(text) - begin > _CHARACTERS else None
            end = len(text) if space is None else space.start() + 1
            pieces.append((index, text[begin:end]))
            characters += end - begin
            begin = end
            if characters > _CHARACTERS:
                yield pieces
                pieces, characters = [], 0
    if pieces:
        yield pieces


def _flags(word: str) -> int:
    if word.isalpha():
        return ALPHABETIC
    flags = ALPHABETIC if any(map(str.isalpha, word)) else 0
    if SYMBOLS.issuperset(word):
        flags |= SYMBOL
    if word in SENTENCE_ENDS:
        flags |= ENDS_SENTENCE
    if all(unicodedata.category(character)[0] == "P" for character in word):
        flags |= PUNCTUATION
    return flags


def _powers(largest: int) -> Hashes:
    """Powers of the base modulo 2^64 with exponents from 0 to the largest."""
    factors = np.full(largest + 1, _BASE, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def _hashes(words: Sequence[str]) -> tuple[Hashes, Hashes]:
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    longest = int(lengths.max())
    if longest > _HASHED_AT_ONCE:
        both = [_hashes_of_long(word) if len(word) > _HASHED_AT_ONCE else _hashes([word]) for word in words]
        return np.concatenate([hashes for hashes, _ in both]), np.concatenate([powers for _, powers in both])
    codes = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    ends = np.repeat(np.cumsum(lengths), lengths)
    powers = _powers(longest)
    values = (codes + np.uint64(1)) * powers[ends - np.arange(len(codes)) - 1]
    return np.add.reduceat(values, np.cumsum(lengths) - lengths), powers[lengths]


def _hashes_of_long(word: str) -> tuple[Hashes, Hashes]:
    """Of one word, a piece at a time: a run without white space can be as long as a file."""
    whole, power = np.zeros(1, np.uint64), np.ones(1, np.uint64)
    for begin in range(0, len(word), _HASHED_AT_ONCE):
        hashes, powers = _hashes([word[begin : begin + _HASHED_AT_ONCE]])
        whole, power = whole * powers + hashes, power * powers
    return whole, power
