"""The filters that FineWeb adds to those of Gopher and C4 (Penedo et al. 2024, arXiv:2406.17557, 3.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import ColumnType, Dropped, Values
from llmkit.data.cleaning.config import FineWebConfig
from llmkit.data.cleaning.gopher_repetition import duplicates
from llmkit.data.cleaning.limits import Limit, judge_by, ratio
from llmkit.data.cleaning.terminals import SENTENCE_ENDS
from llmkit.data.cleaning.word_batch import in_groups, words_by
from llmkit.store.documents import Document


class FineWeb:
    """Drops documents of lists, menus and tables: `empty`, `unpunctuated_lines`, `short_lines`, `duplicate_characters`,
    `newlines`, in this order."""

    name = "fineweb"
    columns: Mapping[str, ColumnType] = {
        "lines": "int64",
        "punctuated_lines": "float64",
        "short_lines": "float64",
        "duplicate_characters": "float64",
        "newlines_per_word": "float64",
    }

    def __init__(self, config: FineWebConfig) -> None:
        self.measuring: Mapping[str, Any] = {
            "words": config.words,
            "short_line_characters": config.short_line_characters,
        }
        self._words = words_by(config.words)
        self._short = config.short_line_characters
        self._limits = (
            Limit("lines", "empty", "", least=1),
            Limit(
                "punctuated_lines",
                "unpunctuated_lines",
                "{:.0%} of the lines end as sentences do",
                least=config.min_punctuated_lines,
            ),
            Limit("short_lines", "short_lines", "{:.0%} of the lines are short", most=config.max_short_lines),
            Limit(
                "duplicate_characters",
                "duplicate_characters",
                "{:.1%} of the characters are in lines that came before",
                most=config.max_duplicate_characters,
            ),
            Limit("newlines_per_word", "newlines", "{:.2f} newlines a word", most=config.max_newlines_per_word),
        )

    def measure(self, batch: Sequence[Document]) -> dict[str, Values]:
        """Lines that are not blank; how many of them end with a sign that ends sentences, and how many are short;
        characters in lines that came before, of all but newlines; newlines a word."""
        texts = [document.text for document in batch]
        counted = np.zeros((6, len(texts)), np.int64)
        for index, text in enumerate(texts):
            lines = [line for line in text.split("\n") if line and not line.isspace()]
            newlines = text.count("\n")
            counted[:, index] = (
                len(lines),
                sum(line[-1] in SENTENCE_ENDS for line in lines),
                sum(len(line) <= self._short for line in lines),
                duplicates(lines)[1],
                len(text) - newlines,
                newlines,
            )
        words = np.concatenate([np.zeros(0, np.int64), *(self._words.of(group).counts for group in in_groups(texts))])
        return {
            "lines": counted[0],
            "punctuated_lines": ratio(counted[1], counted[0]),
            "short_lines": ratio(counted[2], counted[0]),
            "duplicate_characters": ratio(counted[3], counted[4]),
            "newlines_per_word": ratio(counted[5], words),
        }

    def judge(self, measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
        """Keep what is inside all limits, which are themselves inside."""
        return judge_by(self._limits, measured)
