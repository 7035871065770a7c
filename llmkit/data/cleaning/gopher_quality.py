"""The quality filter of Rae et al. 2021 (Gopher, arXiv:2112.11446, appendix A.1), as datatrove has it.

Words and punctuation are counted as `word_rules` cuts them; of punctuation nothing but the number of pieces is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import ColumnType, Dropped, Values
from llmkit.data.cleaning.config import GopherQualityConfig
from llmkit.data.cleaning.limits import Limit, judge_by, ratio
from llmkit.data.cleaning.word_batch import ALPHABETIC, SYMBOL, WordBatch, in_groups, words_by
from llmkit.store.documents import Document

_ELLIPSES = ("...", "…")
_BULLETS = ("•", "-")


def bullet_lines(lines: Sequence[str]) -> int:
    """How many lines begin with a bullet or a hyphen, white space before it not counted."""
    return sum(line.lstrip().startswith(_BULLETS) for line in lines)


def ellipsis_lines(lines: Sequence[str]) -> int:
    """How many lines end with an ellipsis, white space behind it not counted."""
    return sum(line.rstrip().endswith(_ELLIPSES) for line in lines)


class GopherQuality:
    """Drops documents that are no prose: `too_few_words`, `too_many_words`, `short_words`, `long_words`, `hashes`,
    `ellipses`, `bullet_lines`, `ellipsis_lines`, `few_alphabetic_words`, `few_stop_words`, in this order."""

    name = "gopher_quality"
    columns: Mapping[str, ColumnType] = {
        "words": "int64",
        "mean_word_length": "float64",
        "hashes_per_word": "float64",
        "ellipses_per_word": "float64",
        "bullet_lines": "float64",
        "ellipsis_lines": "float64",
        "alphabetic_words": "float64",
        "stop_words": "int64",
    }

    def __init__(self, config: GopherQualityConfig) -> None:
        self.measuring: Mapping[str, Any] = {"words": config.words, "stop_words": sorted(set(config.stop_words))}
        self._words = words_by(config.words)
        self._stop_words = sorted(set(config.stop_words))
        symbols = config.max_symbols_per_word
        self._limits = (
            Limit("words", "too_few_words", "{} words", least=config.min_words),
            Limit("words", "too_many_words", "{} words", most=config.max_words),
            Limit(
                "mean_word_length",
                "short_words",
                "words have {:.2f} characters on average",
                least=config.min_mean_word_length,
            ),
            Limit(
                "mean_word_length",
                "long_words",
                "words have {:.2f} characters on average",
                most=config.max_mean_word_length,
            ),
            Limit("hashes_per_word", "hashes", "{:.3f} hash signs a word", most=symbols),
            Limit("ellipses_per_word", "ellipses", "{:.3f} ellipses a word", most=symbols),
            Limit(
                "bullet_lines", "bullet_lines", "{:.0%} of the lines begin with a bullet", most=config.max_bullet_lines
            ),
            Limit(
                "ellipsis_lines",
                "ellipsis_lines",
                "{:.0%} of the lines end with an ellipsis",
                most=config.max_ellipsis_lines,
            ),
            Limit(
                "alphabetic_words",
                "few_alphabetic_words",
                "{:.0%} of the words have a letter",
                least=config.min_alphabetic_words,
            ),
            Limit("stop_words", "few_stop_words", "{} of the stop words", least=config.min_stop_words),
        )

    def measure(self, batch: Sequence[Document]) -> dict[str, Values]:
        """Words that are more than symbols and their mean length; signs a word, and words with a letter of all words;
        lines with a bullet in front or an ellipsis at the end of all lines; different stop words."""
        groups = [self._measure(group) for group in in_groups([document.text for document in batch])]
        return {
            name: np.concatenate([group[name] for group in groups]) if groups else np.zeros(0) for name in self.columns
        }

    def _measure(self, texts: Sequence[str]) -> dict[str, NDArray[np.generic]]:
        words = self._words.of(texts)
        symbols = (words.flags & SYMBOL) != 0
        count = words.counts - words.sum(symbols)
        return {
            "words": count,
            "mean_word_length": ratio(words.sum(np.where(symbols, 0, words.lengths)), count),
            "alphabetic_words": ratio(words.having(ALPHABETIC), words.counts),
            "stop_words": words.different(self._stop_words),
            **_signs(texts, words),
        }

    def judge(self, measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
        """Keep what is inside all limits, which are themselves inside."""
        return judge_by(self._limits, measured)


def _signs(texts: Sequence[str], words: WordBatch) -> dict[str, NDArray[np.generic]]:
    counted = np.zeros((5, len(texts)), np.int64)
    for index, text in enumerate(texts):
        lines = text.splitlines()
        ellipses = sum(map(text.count, _ELLIPSES))
        counted[:, index] = (
            len(lines),
            text.count("#"),
            ellipses,
            bullet_lines(lines),
            ellipsis_lines(lines) if ellipses else 0,
        )
    return {
        "hashes_per_word": ratio(counted[1], words.counts),
        "ellipses_per_word": ratio(counted[2], words.counts),
        "bullet_lines": ratio(counted[3], counted[0]),
        "ellipsis_lines": ratio(counted[4], counted[0]),
    }
