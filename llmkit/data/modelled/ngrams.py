"""Word n-grams with modified Kneser-Ney smoothing (Chen & Goodman, "An Empirical Study of Smoothing Techniques for
Language Modeling", 1998), interpolated, in sorted arrays that processes share through the disk's cache.

The probability of a word w behind the words h is, with h' being h without its first word,

    p(w | h) = max(c(h w) - D(c(h w)), 0) / c(h .)  +  g(h) p(w | h')

At the highest order c counts occurrences; below it, how many different words, or beginnings of a text, stand before the
n-gram. D takes one of three values, for counts of 1, of 2, and above, found from the counts of counts; g is what makes
the sum one. Below the first order stands the uniform distribution over all words and one more, which is for all words
that were not seen. Equal 64-bit hashes count as equal words.

A text is one sequence: its first words are predicted from fewer words before them, and its end is not predicted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmkit.data.hashing import Hashes, Places, mix
from llmkit.data.words import Words
from llmkit.store.files import canonical_json

Costs = NDArray[np.int32]
"""Negative logarithms to the base 2, in units of 2^-20: whole numbers, whose sum does not depend on their order."""

Floats = NDArray[np.float64]

UNIT = 1 << 20
PRUNED_FROM = 3
"""Order from which rare n-grams are left out."""
BASE = np.uint64(0xD1342543DE82EF95)
"""Key of an n-gram: the polynomial in this base, modulo 2^64, whose coefficients are the hashes of its words, mixed."""
_MODEL = "model.json"
_FALLBACK = (0.5, 1.0, 1.5)
"""Discounts where there are too few n-grams to find them, as KenLM has them."""


@dataclass(frozen=True)
class Table:
    """The n-grams of one order.

    Args:
        keys: their hashes, ascending, [n-grams].
        starts: of which the first with these leading bits is here, and their number behind, [2^bits + 1].
        costs: of the last word behind the others, [n-grams].
        backoffs: factor of the shorter context where a word is not among those seen behind the n-gram, [n-grams].
    """

    keys: Hashes
    starts: NDArray[np.uint32]
    costs: Costs
    backoffs: Costs

    @classmethod
    def of(cls, keys: Hashes, costs: Costs, backoffs: Costs) -> Table:
        """With an index of as many leading bits as give each about one n-gram."""
        bits = max(1, len(keys).bit_length())
        edges = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
        starts = np.append(np.searchsorted(keys, edges), len(keys)).astype(np.uint32)
        return cls(keys, starts, costs, backoffs)

    def find(self, keys: Hashes) -> Places:
        """Place of each key, -1 where it is not there."""
        found = np.full(len(keys), -1, np.int64)
        bits = (len(self.starts) - 1).bit_length() - 1
        slots = (keys >> np.uint64(64 - bits)).astype(np.int64)
        places, ends = self.starts[slots].astype(np.int64), self.starts[slots + 1]
        open_ = np.flatnonzero(places < ends)
        while len(open_):
            here = places[open_]
            same = self.keys[here] == keys[open_]
            found[open_[same]] = here[same]
            open_ = open_[~same]
            places[open_] += 1
            open_ = open_[places[open_] < ends[open_]]
        return found


class NGrams:
    """A model that was trained.

    Args:
        tables: by order, the first one first.
        unknown: cost of a word that was not seen, without context.
    """

    def __init__(self, tables: Sequence[Table], unknown: int) -> None:
        self.tables = tables
        self.unknown = unknown

    @property
    def order(self) -> int:
        """Words in the longest n-gram."""
        return len(self.tables)

    def save(self, folder: Path) -> None:
        """Write the arrays and `model.json`; equal models give equal bytes."""
        for order, table in enumerate(self.tables, start=1):
            for name in ("keys", "starts", "costs", "backoffs"):
                np.save(folder / f"{name}-{order}.npy", getattr(table, name))
        said = {"order": self.order, "unknown": self.unknown}
        (folder / _MODEL).write_text(canonical_json(said), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> NGrams:
        """The model in a folder, its arrays left on the disk until they are looked at."""
        said = json.loads((folder / _MODEL).read_text(encoding="utf-8"))
        names = ("keys", "starts", "costs", "backoffs")
        tables = [
            Table(*(np.asarray(np.load(folder / f"{name}-{order}.npy", mmap_mode="r")) for name in names))
            for order in range(1, said["order"] + 1)
        ]
        return cls(tables, said["unknown"])

    def costs(self, words: Words) -> NDArray[np.int64]:
        """Of each word behind those before it in its text, in units of 2^-20 bits, [words]."""
        hashes, offsets = words.hashes, _offsets(words)
        found = self.tables[0].find(mix(hashes))
        costs = np.where(found >= 0, self.tables[0].costs[found], self.unknown).astype(np.int64)
        rolling = hashes
        for order in range(2, self.order + 1):
            # `rolling`, `found` and all below are by the first word of an n-gram.
            rolling = rolling[:-1] * BASE + hashes[order - 1 :]
            before, found = found[:-1], found[1:]
            inside = offsets[order - 1 :] >= order - 1
            seen = np.flatnonzero(inside & (before >= 0))
            context = before[seen]
            looked = found[seen] >= 0
            matches = np.full(len(seen), -1, np.int64)
            matches[looked] = self.tables[order - 1].find(mix(rolling[seen[looked]]))
            hit = matches >= 0
            costs[seen[hit] + order - 1] = self.tables[order - 1].costs[matches[hit]]
            costs[seen[~hit] + order - 1] += self.tables[order - 2].backoffs[context[~hit]]
            found = np.full(len(found), -1, np.int64)
            found[seen] = matches
        return costs

    def bits(self, words: Words) -> Floats:
        """Of each text, [texts]."""
        sums = np.concatenate([[0], np.cumsum(self.costs(words))])
        total: Floats = (sums[words.begins[1:]] - sums[words.begins[:-1]]) / UNIT
        return total


@dataclass
class _Counted:
    """All different n-grams of one order, by their number.

    Args:
        keys: ascending.
        occurrences: of each in the texts.
        prefixes: number of the n-gram without its last word.
        suffixes: number of the n-gram without its first word.
        initial: which of them stand at the beginning of a text.
    """

    keys: Hashes
    occurrences: NDArray[np.int32]
    prefixes: NDArray[np.int32]
    suffixes: NDArray[np.int32]
    initial: NDArray[np.bool_]


def train(words: Words, order: int, min_count: int = 1) -> NGrams:
    """The model of texts.

    Args:
        words: of all texts, at least one.
        order: words in the longest n-gram.
        min_count: n-grams of three words and more that occur less often are left out; their mass goes to the shorter
            contexts.
    """
    offsets = _offsets(words)
    rolling = words.hashes
    numbers, counted = _count(mix(rolling), np.arange(len(rolling)), np.zeros(len(rolling) + 1, np.int32), offsets)
    maker = _Maker(len(counted.keys), min_count)
    for size in range(2, order + 1):
        rolling = rolling[:-1] * BASE + words.hashes[size - 1 :]
        places = np.flatnonzero(offsets[size - 1 :] >= size - 1)
        numbers, longer = _count(mix(rolling[places]), places, numbers, offsets)
        continuations = np.bincount(longer.suffixes, minlength=len(counted.keys)) + counted.initial
        maker.add(counted, continuations)
        counted = longer
    maker.add(counted, counted.occurrences.astype(np.int64))
    return NGrams(maker.finish(), maker.unknown)


def _offsets(words: Words) -> NDArray[np.int32]:
    """How many words stand before each in its text."""
    found: NDArray[np.int32] = (np.arange(len(words.hashes)) - np.repeat(words.begins[:-1], words.counts)).astype(
        np.int32
    )
    return found


def _count(
    keys: Hashes, places: Places, shorter: NDArray[np.int32], offsets: NDArray[np.int32]
) -> tuple[NDArray[np.int32], _Counted]:
    """Number the n-grams of an order.

    Args:
        keys: of every one in the texts.
        places: the word that each begins with.
        shorter: number of the n-gram of one word less that begins with each word.
        offsets: of each word in its text.

    Returns:
        number of the n-gram that begins with each word, and what there is to know of each.
    """
    order = np.argsort(keys)
    keys = keys[order]
    heads = np.flatnonzero(np.diff(keys, prepend=keys[:1] ^ np.uint64(1)))
    occurrences = np.diff(heads, append=len(keys)).astype(np.int32)
    first = places[order[heads]]
    numbers = np.full(len(shorter), -1, np.int32)
    numbers[places[order]] = np.repeat(np.arange(len(heads), dtype=np.int32), occurrences)
    initial = np.zeros(len(heads), bool)
    initial[numbers[places[offsets[places] == 0]]] = True
    return numbers, _Counted(keys[heads], occurrences, shorter[first], shorter[first + 1], initial)


class _Maker:
    """Probabilities, order after order.

    Args:
        vocabulary: different words.
        min_count: as for `train`.
    """

    def __init__(self, vocabulary: int, min_count: int) -> None:
        self.unknown = 0
        self._min_count = min_count
        self._order = 0
        self._tables: list[Table] = []
        # Of the order before: hashes and probabilities of the n-grams that are left in, and their places by number.
        self._keys = np.zeros(1, np.uint64)
        self._probabilities = np.ones(1) / (vocabulary + 1)
        self._kept = np.zeros(1, np.int64)

    def add(self, counted: _Counted, counts: NDArray[np.int64]) -> None:
        """The next order.

        Args:
            counted: its n-grams.
            counts: of each: occurrences at the highest order, else what may stand before.
        """
        self._order += 1
        discounts = _discounts(counts)[np.minimum(counts, 3) - 1]
        totals = np.bincount(counted.prefixes, counts, minlength=len(self._kept))
        shares = (counts - discounts) / totals[counted.prefixes]
        kept = np.ones(len(counts), bool) if self._order < PRUNED_FROM else counted.occurrences >= self._min_count
        chosen = np.flatnonzero(kept)
        prefixes, suffixes = counted.prefixes[chosen], counted.suffixes[chosen]
        # What is not given to the words seen behind a context; all, where none was.
        backoffs = 1.0 - np.bincount(prefixes, shares[chosen], minlength=len(self._kept)).astype(np.float64)
        below = self._probabilities[self._kept[suffixes]]
        probabilities = shares[chosen] + backoffs[prefixes] * below
        if self._order == 1:
            self.unknown = int(_costs(backoffs * self._probabilities)[0])
        else:
            self._close(backoffs)
        self._keys, self._probabilities = counted.keys[chosen], probabilities
        self._kept = np.full(len(counts), -1, np.int64)
        self._kept[chosen] = np.arange(len(chosen))

    def finish(self) -> list[Table]:
        """The tables of all orders."""
        self._close(np.ones(len(self._kept)))
        return self._tables

    def _close(self, backoffs: Floats) -> None:
        costs = _costs(self._probabilities)
        self._tables.append(Table.of(self._keys, costs, _costs(backoffs[self._kept >= 0])))


def _discounts(counts: NDArray[np.int64]) -> Floats:
    """What is taken off counts of 1, of 2, and above (Chen & Goodman 1998, equation 26)."""
    n1, n2, n3, n4 = (int((counts == count).sum()) for count in range(1, 5))
    if min(n1, n2, n3) == 0:
        return np.array(_FALLBACK)
    y = n1 / (n1 + 2 * n2)
    found = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    possible = all(0 < discount < count for count, discount in enumerate(found, start=1))
    return np.array(found if possible else _FALLBACK)


def _costs(probabilities: Floats) -> Costs:
    # Where a backoff is nothing, since discounts are all there is of it, rounding may leave less than that.
    found: Costs = np.rint(-np.log2(np.maximum(probabilities, 2.0**-1000)) * UNIT).astype(np.int32)
    return found
