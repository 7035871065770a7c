"""The repetition filter of Rae et al. 2021 (Gopher, arXiv:2112.11446, table A1), as datatrove has it.

All fractions of characters are of those of the whole text, white space included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import ColumnType, Dropped, Values
from llmkit.data.cleaning.config import GopherRepetitionConfig
from llmkit.data.cleaning.limits import Limit, judge_by, ratio
from llmkit.data.cleaning.word_batch import in_groups, words_by
from llmkit.data.cleaning.word_ngrams import duplicate_ngram_characters, top_ngram_characters
from llmkit.store.documents import Document

_PARTS = ("duplicate_paragraphs", "duplicate_paragraph_characters", "duplicate_lines", "duplicate_line_characters")


def paragraphs_of(text: str) -> list[str]:
    """What empty lines separate, white space around the text removed; a line of blanks is not empty."""
    text = text.strip()
    return [part for part in (part.lstrip("\n") for part in text.split("\n\n")) if part] or [""]


def lines_of(text: str) -> list[str]:
    """Lines that are not empty; newlines at the beginning and at the end have an empty one before or behind them."""
    lines = [line for line in text.split("\n") if line]
    return [""] * text.startswith("\n") + lines + [""] * text.endswith("\n")


def duplicates(parts: Iterable[str]) -> tuple[int, int]:
    """How many parts are equal to an earlier one, and how many characters they have."""
    parts = list(parts)
    different = set(parts)
    if len(different) == len(parts):
        return 0, 0
    return len(parts) - len(different), sum(map(len, parts)) - sum(map(len, different))


class GopherRepetition:
    """Drops documents that repeat themselves, by limits that are looked at in this order: `duplicate_paragraphs`,
    `duplicate_paragraph_characters`, `duplicate_lines`, `duplicate_line_characters`, `top_<n>gram`,
    `duplicate_<n>grams`; and documents without a character (`empty`)."""

    name = "gopher_repetition"

    def __init__(self, config: GopherRepetitionConfig) -> None:
        self._top = sorted(config.max_top_ngrams)
        self._duplicate = sorted(config.max_duplicate_ngrams)
        self._words = words_by(config.words)
        self.measuring: Mapping[str, Any] = {
            "words": config.words,
            "top_ngrams": self._top,
            "duplicate_ngrams": self._duplicate,
        }
        tops = {f"top_{size}gram": config.max_top_ngrams[size] for size in self._top}
        repeated = {f"duplicate_{size}grams": config.max_duplicate_ngrams[size] for size in self._duplicate}
        fractions: dict[str, ColumnType] = dict.fromkeys((*_PARTS, *tops, *repeated), "float64")
        self.columns: Mapping[str, ColumnType] = {"characters": "int64", **fractions}
        self._limits = (
            Limit("characters", "empty", "", least=1),
            *(_limit(name, getattr(config, f"max_{name}")) for name in _PARTS),
            *(_limit(name, most) for name, most in (tops | repeated).items()),
        )

    def measure(self, batch: Sequence[Document]) -> dict[str, Values]:
        """Characters; fractions of paragraphs and lines, and of characters in them, that came before; fractions of
        characters in the most frequent n-grams and in n-grams that came before."""
        groups = [self._measure(group) for group in in_groups([document.text for document in batch])]
        return {
            name: np.concatenate([group[name] for group in groups]) if groups else np.zeros(0) for name in self.columns
        }

    def _measure(self, texts: Sequence[str]) -> dict[str, NDArray[np.generic]]:
        characters = np.fromiter(map(len, texts), np.int64, len(texts))
        counted = np.zeros((6, len(texts)), np.int64)
        for index, text in enumerate(texts):
            paragraphs, lines = paragraphs_of(text), lines_of(text)
            counted[:, index] = (len(paragraphs), *duplicates(paragraphs), len(lines), *duplicates(lines))
        words = self._words.of(texts)
        tops = top_ngram_characters(words, self._top)
        repeated = duplicate_ngram_characters(words, self._duplicate)
        return {
            "characters": characters,
            "duplicate_paragraphs": ratio(counted[1], counted[0]),
            "duplicate_paragraph_characters": ratio(counted[2], characters),
            "duplicate_lines": ratio(counted[4], counted[3]),
            "duplicate_line_characters": ratio(counted[5], characters),
            **{f"top_{size}gram": ratio(found, characters) for size, found in tops.items()},
            **{f"duplicate_{size}grams": ratio(found, characters) for size, found in repeated.items()},
        }

    def judge(self, measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
        """Keep what is inside all limits, which are themselves inside."""
        return judge_by(self._limits, measured)


def _limit(name: str, most: float) -> Limit:
    what = {
        "duplicate_paragraphs": "of the paragraphs came before",
        "duplicate_paragraph_characters": "of the characters are in paragraphs that came before",
        "duplicate_lines": "of the lines came before",
        "duplicate_line_characters": "of the characters are in lines that came before",
    }
    default = "of the characters are in " + (
        "the most frequent one" if name.startswith("top") else "those that came before"
    )
    return Limit(name, name, "{:.0%} " + what.get(name, default), most=most)
