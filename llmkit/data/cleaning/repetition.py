"""Texts that say the same again and again: menus, error logs, generated tables, text that a model wrote in a loop.

Two measures after Rae et al. 2021 (Gopher, arXiv:2112.11446, appendix A.1.1). Both are fractions of characters rather
than counts, so that the short lines which repeat in any honest text ("else:", "---") weigh little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import ColumnType, Dropped, Values
from llmkit.data.cleaning.config import RepetitionConfig
from llmkit.store.documents import Document


def duplicate_line_fraction(text: str) -> float:
    """Fraction of the characters of a text's lines that stand in a line which came before.

    Lines are compared without the white space around them; empty ones do not count. 0 for a text without lines.
    """
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    total = sum(map(len, lines))
    if total == 0:
        return 0.0
    return 1 - sum(map(len, dict.fromkeys(lines))) / total


def top_ngram_fraction(text: str, size: int) -> float:
    """Fraction of the characters of a text's words that the most frequent n-gram of words covers.

    Words are separated by white space. A word that two occurrences share is counted once; an n-gram that occurs once
    covers nothing; among equally frequent ones the first to appear counts.
    """
    words = text.split()
    ngrams = list(zip(*(words[start:] for start in range(size)), strict=False))
    if not ngrams:
        return 0.0
    top, count = Counter(ngrams).most_common(1)[0]
    if count == 1:
        return 0.0
    covered: set[int] = set()
    for start, ngram in enumerate(ngrams):
        if ngram == top:
            covered.update(range(start, start + size))
    return sum(len(words[index]) for index in covered) / sum(map(len, words))


class Repetition:
    """Drops documents whose lines or words repeat too much: `repeated_lines`, `repeated_words`."""

    name = "repetition"
    columns: Mapping[str, ColumnType] = {"characters": "int64", "lines": "float64", "words": "float64"}

    def __init__(self, config: RepetitionConfig) -> None:
        self._config = config
        self.measuring: Mapping[str, Any] = {"ngram": config.ngram}

    def measure(self, batch: Sequence[Document]) -> dict[str, Values]:
        """Characters, and the fractions of them in lines that came before and in the most frequent n-gram."""
        texts = [document.text for document in batch]
        return {
            "characters": np.array([len(text) for text in texts], np.int64),
            "lines": np.array([duplicate_line_fraction(text) for text in texts], np.float64),
            "words": np.array([top_ngram_fraction(text, self._config.ngram) for text in texts], np.float64),
        }

    def judge(self, measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
        """Keep what is inside the limits, and all short documents, since in few words anything repeats."""
        rows = zip(*(measured[name].tolist() for name in self.columns), strict=True)
        return [self._verdict(*row) for row in rows]

    def _verdict(self, characters: int, lines: float, words: float) -> Dropped | None:
        config = self._config
        if characters < config.min_characters:
            return None
        if lines > config.max_duplicate_lines:
            return Dropped("repeated_lines", f"{lines:.0%} of the characters are in lines that came before")
        if words > config.max_top_ngram:
            return Dropped("repeated_words", f"one {config.ngram}-gram covers {words:.0%} of the characters")
        return None
