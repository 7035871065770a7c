"""A list of words and phrases, and where texts have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmkit.data.hashing import Hashes
from llmkit.data.sources.files import READ_ERRORS, open_bytes
from llmkit.data.words import Words, ngrams, words_of
from llmkit.errors import DataError


@dataclass(frozen=True)
class Lexicon:
    """Words and phrases with their weights.

    Args:
        entries: by length in words: hashes, ascending, and the weight of each.
    """

    entries: Mapping[int, tuple[Hashes, NDArray[np.float64]]]

    def find(self, words: Words) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What of a list is in texts.

        From left to right, the longest entry that begins at a word counts, and the next one begins behind it.

        Args:
            words: of the texts.

        Returns:
            how many entries each text has, [texts]; and their words, each by the entry's weight, [texts].
        """
        found: list[tuple[int, int, float]] = []
        for length, (keys, weights) in self.entries.items():
            grams = ngrams(words, length)
            places = np.minimum(np.searchsorted(keys, grams.hashes), len(keys) - 1)
            hits = np.flatnonzero(keys[places] == grams.hashes)
            texts = np.searchsorted(grams.begins, hits, side="right") - 1
            begins = words.begins[texts] + hits - grams.begins[texts]
            found += zip(begins.tolist(), [-length] * len(hits), weights[places[hits]].tolist(), strict=True)
        counts, sums = np.zeros(len(words.counts), np.int64), np.zeros(len(words.counts))
        free = 0
        for begin, negative, weight in sorted(found):
            if begin >= free:
                text = int(np.searchsorted(words.begins, begin, side="right")) - 1
                counts[text] += 1
                sums[text] -= negative * weight
                free = begin - negative
        return counts, sums


def read_lexicon(file: Path) -> Lexicon:
    """The list in a file: an entry on each line, with its weight behind a tab where that is not 1.

    Args:
        file: plain or compressed, as its name says.

    Raises:
        DataError: the file cannot be read, has a line of another form, or no entry.
    """
    texts, weights, lines = _read(file)
    words = words_of(texts)
    for line, count in zip(lines, words.counts.tolist(), strict=True):
        if not count:
            raise DataError("there is no word in this entry.", where=f"{file}:{line}")
    if not texts:
        raise DataError("the list has no entry.", where=str(file))
    entries = {}
    for length in np.unique(words.counts).tolist():
        of_length = np.flatnonzero(words.counts == length)
        hashes = ngrams(words_of([texts[place] for place in of_length.tolist()]), length).hashes
        chosen = weights[of_length]
        # Of an entry that stands twice the larger weight counts.
        order = np.lexsort((-chosen, hashes))
        keys, first = np.unique(hashes[order], return_index=True)
        entries[length] = keys, chosen[order][first]
    return Lexicon(entries)


def _read(file: Path) -> tuple[Sequence[str], NDArray[np.float64], Sequence[int]]:
    texts: list[str] = []
    weights: list[float] = []
    lines: list[int] = []
    number = 0
    try:
        with open_bytes(file) as stream:
            for number, line in enumerate(stream, start=1):
                text, tab, said = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n").partition("\t")
                if not text.strip() or text.startswith("#"):
                    continue
                texts.append(text)
                weights.append(_weight(said, f"{file}:{number}") if tab else 1.0)
                lines.append(number)
    except UnicodeDecodeError:
        raise DataError("the list is no UTF-8.", where=f"{file}:{number}") from None
    except READ_ERRORS as error:
        raise DataError(f"the list cannot be read: {error}.", where=str(file)) from None
    return texts, np.array(weights), lines


def _weight(said: str, where: str) -> float:
    try:
        weight = float(said)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise DataError(f"`{said}` is no weight above 0.", where=where, hint="Write: the words, a tab, the weight.")
    return weight
