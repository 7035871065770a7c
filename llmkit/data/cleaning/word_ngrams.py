"""N-grams of words that repeat inside a text, found for many texts at once.

The measures are those of datatrove's reading of Gopher's repetition filter: the most frequent n-gram is one of words,
and duplicate n-grams are compared as the characters that they are when put together ("a bc" and "ab c" are the same).
Equal 64-bit hashes count as equal. Of all n-grams only those are held in memory that may come more than once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.word_batch import Counts, Hashes, WordBatch
from llmkit.data.hashing import mix

_BASE = np.uint64(0xD1342543DE82EF95)
_BLOCK = 1 << 18
_MOST_BITS = 22
_LOOP = 1 << 16

Found = tuple[Hashes, Counts]
"""Keys of n-grams, and the words at which they begin."""


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
    repeated = _may_repeat(words, sizes, together=False)
    return {size: _top(words, size, *found) for size, found in repeated.items()}


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
    found: dict[int, Counts] = {}
    for size, (keys, places) in _may_repeat(words, sizes, together=True).items():
        taken = _taken(keys, places, size)
        sums = np.zeros(len(words.counts), np.int64)
        np.add.at(sums, words.texts[taken], words.before[taken + size] - words.before[taken])
        found[size] = sums
    return found


def _may_repeat(words: WordBatch, sizes: Sequence[int], *, together: bool) -> dict[int, Found]:
    """By size all n-grams that come more than once in their text, and few others, in their order."""
    if not sizes:
        return {}
    blocks = range(0, len(words.numbers), _BLOCK)
    bits = min(len(words.numbers).bit_length() + 1, _MOST_BITS)
    # Those of one block are held from the first pass to the second; those of several are made twice.
    held = list(_ngrams(words, 0, sizes, together=together)) if len(blocks) == 1 else None
    counts = {size: np.zeros(1 << bits, np.int64) for size in sizes}
    for begin in blocks:
        for size, (keys, _) in held or _ngrams(words, begin, sizes, together=together):
            counts[size] += np.bincount(_slots(keys, bits, 0), minlength=1 << bits)
    chosen: Mapping[int, list[Found]] = defaultdict(list)
    for begin in blocks:
        for size, (keys, places) in held or _ngrams(words, begin, sizes, together=together):
            again = counts[size][_slots(keys, bits, 0)] > 1
            chosen[size].append((keys[again], places[again]))
    return {size: _once_more(chosen[size], bits) for size in sizes}


def _ngrams(words: WordBatch, begin: int, sizes: Sequence[int], *, together: bool) -> Iterator[tuple[int, Found]]:
    """The n-grams that begin in a block of words and do not go beyond their text.

    The key of one is a polynomial in the hashes of its words or, `together`, that of the characters put together.
    """
    block = slice(begin, begin + _BLOCK + max(sizes) - 1)
    texts = words.texts[block]
    hashes, powers = words.lexicon.hashes(words.numbers[block])
    if not together:
        hashes, powers = mix(hashes), np.full(len(hashes), _BASE)
    of_text = mix(np.arange(1, len(words.counts) + 1).astype(np.uint64))
    rolling = hashes
    for size in range(1, max(sizes) + 1):
        if size > 1:
            rolling = rolling[:-1] * powers[size - 1 :] + hashes[size - 1 :]
        if size in sizes:
            first = texts[: min(len(rolling), _BLOCK)]
            places = np.flatnonzero(first == texts[size - 1 : size - 1 + len(first)])
            yield size, (mix(rolling[places]) ^ of_text[first[places]], places + begin)


def _slots(keys: Hashes, bits: int, which: int) -> Counts:
    """Some bits of each key."""
    slots: Counts = (keys >> np.uint64(64 - (which + 1) * bits)).astype(np.int64) & ((1 << bits) - 1)
    return slots


def _once_more(found: Sequence[Found], bits: int) -> Found:
    """What is left of n-grams when other bits of their keys are compared."""
    keys = np.concatenate([np.zeros(0, np.uint64), *(keys for keys, _ in found)])
    places = np.concatenate([np.zeros(0, np.int64), *(places for _, places in found)])
    slots = _slots(keys, bits, 1)
    again: NDArray[np.bool_] = np.bincount(slots, minlength=1 << bits)[slots] > 1
    return keys[again], places[again]


def _top(words: WordBatch, size: int, keys: Hashes, places: Counts) -> Counts:
    # By text the most occurrences and then the first place, as one number of which the largest wins.
    span = np.int64(len(words.numbers) + 1)
    best = np.where(words.counts >= size, span + (span - 1 - words.starts[:-1]), 0)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] + np.uint64(1)))
    counts, heads = np.diff(begins, append=len(order)), places[order[begins]]
    np.maximum.at(best, words.texts[heads], counts * span + (span - 1 - heads))
    has = np.flatnonzero(best)
    counts, rest = np.divmod(best[has], span)
    first = span - 1 - rest
    characters = np.zeros(len(best), np.int64)
    characters[has] = counts * (words.before[first + size] - words.before[first] + size - 1)
    return characters


def _taken(keys: Hashes, places: Counts, size: int) -> Counts:
    """Places of the n-grams that count as duplicates."""
    seen: set[int] = set()
    taken: list[int] = []
    free = 0
    for begin in range(0, len(keys), _LOOP):
        some = slice(begin, begin + _LOOP)
        for place, key in zip(places[some].tolist(), keys[some].tolist(), strict=True):
            if place >= free:
                if key in seen:
                    taken.append(place)
                    free = place + size
                else:
                    seen.add(key)
    return np.array(taken, np.int64)
