"""N-grams of words that repeat inside a text, found for many texts at once.

The measures are those of datatrove's reading of Gopher's repetition filter: the most frequent n-gram is one of words,
and duplicate n-grams are compared as the characters that they are when put together ("a bc" and "ab c" are the same).
Equal 64-bit hashes count as equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmkit.data.cleaning.word_batch import Counts, Hashes, WordBatch
from llmkit.data.hashing import mix

_BASE = np.uint64(0xD1342543DE82EF95)
_TEXT = np.uint64(0x9E3779B97F4A7C15)
_MOST_BITS = 22


def top_ngram_characters(words: WordBatch, sizes: Sequence[int]) -> dict[int, Counts]:
    """Characters in all occurrences of the most frequent n-gram of each text, blanks between words counted.

    Occurrences may overlap, and are counted in full. Among equally frequent n-grams the first to appear counts, also
    where each stands once. 0 for a text of fewer words.

    Args:
        words: of the texts.
        sizes: words in an n-gram, each at least 1.

    Returns:
        by size, [texts].
    """
    hashes = mix(words.lexicon.hashes(words.numbers)[0])
    found: dict[int, Counts] = {}
    rolling = hashes ^ mix(words.texts.astype(np.uint64) + _TEXT)
    for size in range(1, max(sizes, default=0) + 1):
        if size > 1:
            rolling = rolling[:-1] * _BASE + hashes[size - 1 :]
        if size in sizes:
            places = _places(words, size)
            found[size] = _top(words, mix(rolling[places]), places, size)
    return found


def duplicate_ngram_characters(words: WordBatch, sizes: Sequence[int]) -> dict[int, Counts]:
    """Characters of each text in n-grams that came before, each counted once.

    Going from left to right, an n-gram that came before counts with all its characters and the next one looked at
    stands behind it; else the next one begins a word later.

    Args:
        words: of the texts.
        sizes: words in an n-gram, each at least 1.

    Returns:
        by size, [texts].
    """
    hashes, powers = words.lexicon.hashes(words.numbers)
    which = mix(words.texts.astype(np.uint64) + _TEXT)
    found: dict[int, Counts] = {}
    rolling = hashes
    for size in range(1, max(sizes, default=0) + 1):
        if size > 1:
            rolling = rolling[:-1] * powers[size - 1 :] + hashes[size - 1 :]
        if size in sizes:
            places = _places(words, size)
            taken = _taken(mix(rolling[places]) ^ which[places], places, size)
            found[size] = _sums(words, taken, _characters(words, taken, size))
    return found


def _places(words: WordBatch, size: int) -> Counts:
    """Words at which an n-gram of one text begins."""
    ends = words.starts[words.texts[: max(0, len(words.numbers) - size + 1)] + 1]
    return np.flatnonzero(np.arange(len(ends)) + size <= ends)


def _characters(words: WordBatch, places: Counts, size: int) -> Counts:
    """Characters of the words of n-grams."""
    before = np.zeros(len(words.numbers) + 1, np.int64)
    np.cumsum(words.lengths, out=before[1:])
    return before[places + size] - before[places]


def _sums(words: WordBatch, places: Counts, values: Counts) -> Counts:
    """Sums by text of values at words."""
    sums = np.zeros(len(words.counts), np.int64)
    np.add.at(sums, words.texts[places], values)
    return sums


def _may_repeat(keys: Hashes) -> Counts:
    """Indices of all keys that come more than once, and of few others."""
    if not len(keys):
        return np.zeros(0, np.int64)
    bits = min(len(keys).bit_length() + 1, _MOST_BITS)
    indices = np.arange(len(keys))
    for shift in (64 - bits, 64 - 2 * bits):
        slots = ((keys[indices] >> np.uint64(shift)) & np.uint64((1 << bits) - 1)).astype(np.int64)
        indices = indices[np.bincount(slots, minlength=1 << bits)[slots] > 1]
    return indices


def _top(words: WordBatch, keys: Hashes, places: Counts, size: int) -> Counts:
    texts = words.texts[places]
    # By text the most occurrences and then the first place, as one number of which the largest wins.
    best = np.zeros(len(words.counts), np.int64)
    first = np.flatnonzero(np.diff(texts, prepend=-1))
    span = np.int64(len(words.numbers) + 1)
    best[texts[first]] = span + (span - 1 - places[first])
    indices = _may_repeat(keys)
    order = indices[np.argsort(keys[indices], kind="stable")]
    begins = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] + np.uint64(1)))
    counts = np.diff(begins, append=len(order))
    heads = order[begins]
    np.maximum.at(best, texts[heads], counts * span + (span - 1 - places[heads]))
    has = np.flatnonzero(best)
    counts, at = np.divmod(best[has], span)
    characters = np.zeros(len(best), np.int64)
    characters[has] = counts * (_characters(words, span - 1 - at, size) + size - 1)
    return characters


def _taken(keys: Hashes, places: Counts, size: int) -> Counts:
    """Places of the n-grams that count as duplicates."""
    indices = _may_repeat(keys)
    seen: set[int] = set()
    taken: list[int] = []
    free = 0
    for place, key in zip(places[indices].tolist(), keys[indices].tolist(), strict=True):
        if place >= free:
            if key in seen:
                taken.append(place)
                free = place + size
            else:
                seen.add(key)
    return np.array(taken, np.int64)
