"""The rules for whole documents of Raffel et al. 2020 (C4, arXiv:1910.10683, 2.2), as datatrove has them.

The removal of lines, which comes before, is the step `c4_lines`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import ColumnType, Dropped, Values
from llmkit.data.cleaning.c4_lines import CURLY_BRACKET, PLACEHOLDER
from llmkit.data.cleaning.config import C4Config
from llmkit.data.cleaning.limits import Limit, judge_by
from llmkit.data.cleaning.word_batch import ENDS_SENTENCE, PUNCTUATION, Counts, WordBatch, in_groups, words_by
from llmkit.store.documents import Document


def sentences(words: WordBatch) -> Counts:
    """How many sentences each text has, [texts].

    A sentence ends with a sign that ends sentences and the punctuation behind it, or with the text.
    """
    ends = (words.flags & ENDS_SENTENCE) != 0
    told = np.flatnonzero(ends | ((words.flags & PUNCTUATION) == 0))
    ends, texts = ends[told], words.texts[told]
    begins = ~ends[1:] & ends[:-1] & (texts[1:] == texts[:-1])
    more = np.bincount(texts[1:][begins], minlength=len(words.counts))
    return more + (words.counts > 0)


class C4:
    """Drops documents with a text that stands for another (`lorem_ipsum`), with a curly bracket, which comes from code
    (`curly_bracket`), and with few sentences (`few_sentences`), in this order."""

    name = "c4"
    columns: Mapping[str, ColumnType] = {"lorem_ipsum": "bool", "curly_bracket": "bool", "sentences": "int64"}

    def __init__(self, config: C4Config) -> None:
        self.measuring: Mapping[str, Any] = {"words": config.words}
        self._words = words_by(config.words)
        limits = [Limit("sentences", "few_sentences", "{} sentences", least=config.min_sentences)]
        if config.curly_bracket:
            limits.insert(0, Limit("curly_bracket", "curly_bracket", "", most=0))
        if config.lorem_ipsum:
            limits.insert(0, Limit("lorem_ipsum", "lorem_ipsum", "", most=0))
        self._limits = tuple(limits)

    def measure(self, batch: Sequence[Document]) -> dict[str, Values]:
        """What is in each document, and its sentences, none of which goes beyond a line."""
        texts = [document.text for document in batch]
        return {
            "lorem_ipsum": np.fromiter((PLACEHOLDER in text.lower() for text in texts), bool, len(texts)),
            "curly_bracket": np.fromiter((CURLY_BRACKET in text for text in texts), bool, len(texts)),
            "sentences": np.concatenate([np.zeros(0, np.int64), *map(self._sentences, in_groups(texts))]),
        }

    def _sentences(self, texts: Sequence[str]) -> Counts:
        lines = [[line for line in text.splitlines() if line and not line.isspace()] for text in texts]
        groups = in_groups(line for of_text in lines for line in of_text)
        counts = np.concatenate([np.zeros(0, np.int64), *(sentences(self._words.of(group)) for group in groups)])
        before = np.concatenate([[0], np.cumsum(counts)])
        ends = np.cumsum([len(of_text) for of_text in lines])
        of_texts: Counts = np.diff(before[ends], prepend=0)
        return of_texts

    def judge(self, measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
        """Keep what has none of the signs, and sentences enough."""
        return judge_by(self._limits, measured)
