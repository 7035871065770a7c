"""Decontamination as a filter: n-grams in common are measured, thresholds judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import ColumnType, Dropped, Values
from llmkit.data.decontamination.config import DecontaminationConfig
from llmkit.data.decontamination.index import Index, plain
from llmkit.data.deduplication.base import group_starts
from llmkit.data.words import word_bounds, words_of
from llmkit.store.documents import Document

_SHOWN = 160
"""Most characters that are shown of what was found."""


class Decontamination:
    """Drops documents that hold evaluation data, as `contaminated`.

    Args:
        config: its settings.
        index: folder that `index.write_index` wrote. What is measured depends on its content beside `measuring`.
    """

    name = "decontamination"
    columns: Mapping[str, ColumnType] = {"matches": "int32", "share": "float32", "found": "string"}

    def __init__(self, config: DecontaminationConfig, index: Path) -> None:
        self._config = config
        self._folder = index
        self.measuring: Mapping[str, Any] = {"ngram": config.ngram, "min_words": config.min_words}

    @cached_property
    def _index(self) -> Index:
        return Index(self._folder)

    def measure(self, batch: Sequence[Document]) -> dict[str, Values]:
        """At how many words of each document an n-gram of evaluation data, or a whole shorter text, begins; which share
        of its words is in one; and where the first of them comes from, with its words."""
        texts = [plain(document.text) for document in batch]
        words = words_of(texts)
        found = self._index.find(words)
        texts_of_words = np.searchsorted(words.begins, found.begin, side="right") - 1
        matches = np.bincount(texts_of_words[group_starts(found.begin)], minlength=len(texts))
        # Of each word: in how many of the stretches found it is.
        steps = np.zeros(len(words.hashes) + 1, np.int32)
        np.add.at(steps, found.begin, 1)
        np.add.at(steps, found.end, -1)
        covered = np.zeros(len(words.hashes) + 1, np.int64)
        np.cumsum(np.cumsum(steps[:-1]) > 0, out=covered[1:])
        names: list[str | None] = [None] * len(texts)
        for place in group_starts(texts_of_words).tolist():
            text = int(texts_of_words[place])
            first, behind = (int(at[place] - words.begins[text]) for at in (found.begin, found.end))
            names[text] = f'{self._index.name(int(found.row[place]))}: "{_shown(texts[text], first, behind)}"'
        return {
            "matches": matches.astype(np.int32),
            "share": (np.diff(covered[words.begins]) / np.maximum(words.counts, 1)).astype(np.float32),
            "found": names,
        }

    def judge(self, measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
        """Drop what has enough matches that cover a large enough share."""
        matches: NDArray[Any] = measured["matches"]
        enough = (matches >= self._config.min_matches) & (measured["share"] >= np.float32(self._config.min_share))
        verdicts: list[Dropped | None] = [None] * len(matches)
        for row in np.flatnonzero(enough).tolist():
            count, share = int(matches[row]), float(measured["share"][row])
            detail = f"{count:,} match{'es' if count > 1 else ''}, {share:.1%} of the words; {measured['found'][row]}"
            verdicts[row] = Dropped("contaminated", detail)
        return verdicts


def _shown(text: str, first: int, behind: int) -> str:
    """A stretch of words as it stands in the text, on one line."""
    begins, ends = word_bounds(text)
    shown = " ".join(text[begins[first] : ends[behind - 1]].split())
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 1]}…"
