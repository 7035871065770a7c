"""Toxic documents: by a list of words and phrases, and by a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import ColumnType, Dropped, Values
from llmkit.data.cleaning.limits import Limit, as_it_is, judge_by
from llmkit.data.modelled.config import ToxicityConfig
from llmkit.data.modelled.lexicon import Lexicon, read_lexicon
from llmkit.data.modelled.opened import FilterModel, how_it_computes
from llmkit.data.words import words_of
from llmkit.errors import ModelError
from llmkit.store.documents import Document


class Toxicity:
    """Drops documents with too many words of the list (`toxic_words`), and those with a window that the classifier
    finds toxic (`toxic`)."""

    name = "toxicity"
    columns: Mapping[str, ColumnType] = {"matches": "int64", "share": "float64", "probability": "float64"}

    def __init__(self, config: ToxicityConfig) -> None:
        self._config = config
        self.measuring: Mapping[str, Any] = {"lexicon": config.lexicon is not None, "model": config.model is not None}
        label = as_it_is(config.label or "")
        self._limits = (
            Limit("share", "toxic_words", "{:.2%} of the words", most=config.max_share),
            Limit("probability", "toxic", f"probability {{:.3f}} of {label}", most=config.max_probability),
        )
        self._model = None
        if config.model is not None:
            self.measuring = {
                **self.measuring,
                "label": config.label,
                "max_length": config.max_length,
                **how_it_computes(config),
            }
            self._model = FilterModel(config.model, config, ("classification",))

    def measure(self, batch: Sequence[Document]) -> dict[str, Values]:
        """Entries of the list that a document has, and the share of its words in them, by weight; and the highest
        probability of the class in a window. What is not asked for is 0 or not a number."""
        texts = [document.text for document in batch]
        matches, share = np.zeros(len(texts), np.int64), np.full(len(texts), np.nan)
        if self._config.lexicon is not None:
            words = words_of(texts)
            matches, weighted = self._lexicon.find(words)
            np.divide(weighted, words.counts, out=share, where=words.counts > 0)
        return {"matches": matches, "share": share, "probability": self._probability(texts)}

    def judge(self, measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
        """Keep what is below both limits."""
        return judge_by(self._limits, measured)

    @cached_property
    def _lexicon(self) -> Lexicon:
        assert self._config.lexicon is not None
        return read_lexicon(Path(self._config.lexicon))

    def _probability(self, texts: Sequence[str]) -> NDArray[np.float64]:
        found = np.full(len(texts), np.nan)
        if self._model is None:
            return found
        from llmkit.data.modelled.windows import window_outputs

        length, batch_size = self._config.max_length, self._config.batch_size
        with self._model.at_work() as opened:
            outputs, owners = window_outputs(opened, texts, length, every=True, batch_size=batch_size)
            names = opened.model.config.labels
        if self._config.label not in names:
            hint = f"Its classes: {', '.join(names)}."
            raise ModelError(f"the model has no class `{self._config.label}`.", where=self._config.model, hint=hint)
        np.fmax.at(found, owners, outputs[:, names.index(self._config.label)])
        return found
