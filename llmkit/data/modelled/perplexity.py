"""Perplexity under a language model as a filter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import ColumnType, Dropped, Values
from llmkit.data.cleaning.limits import Limit, judge_by
from llmkit.data.modelled.config import PerplexityConfig
from llmkit.data.modelled.ngrams import NGrams
from llmkit.data.modelled.opened import FilterModel, how_it_computes
from llmkit.data.words import words_of
from llmkit.store.documents import Document

Floats = NDArray[np.float64]


class Perplexity:
    """Drops documents that are `too_unlikely` or `too_likely`.

    A document of nothing that is scored has no measures (they are not a number), and stays.

    Args:
        config: its settings.
        ngrams: folder of the model of n-grams, which `ngrams.train` made. What is measured depends on its content.
    """

    name = "perplexity"
    columns: Mapping[str, ColumnType] = {"perplexity": "float64", "bits_per_byte": "float64", "length": "int64"}

    def __init__(self, config: PerplexityConfig, ngrams: Path | None = None) -> None:
        self._config = config
        self._folder = ngrams
        by_words = config.ngram is not None
        self.measuring: Mapping[str, Any] = (
            {"by": "ngram"} if by_words else {"by": "model", "context": config.context, **how_it_computes(config)}
        )
        unit = "word" if by_words else "token"
        perplexity, bits = f"a perplexity of {{:,.1f}} per {unit}", "{:,.3f} bits a byte"
        self._limits = (
            Limit("perplexity", "too_unlikely", perplexity, most=config.max_perplexity),
            Limit("bits_per_byte", "too_unlikely", bits, most=config.max_bits_per_byte),
            Limit("perplexity", "too_likely", perplexity, least=config.min_perplexity),
            Limit("bits_per_byte", "too_likely", bits, least=config.min_bits_per_byte),
        )
        self._model = None if config.model is None else FilterModel(config.model, config, ("causal-lm",))

    def measure(self, batch: Sequence[Document]) -> dict[str, Values]:
        """Perplexity of a word or token, bits a byte, and how many words or tokens there are."""
        texts = [document.text for document in batch]
        bits, lengths = self._by_words(texts) if self._model is None else self._by_tokens(texts, self._model)
        sizes = np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts], np.int64)
        with np.errstate(over="ignore"):
            perplexity = np.exp2(_quotient(bits, lengths))
        return {
            "perplexity": perplexity,
            "bits_per_byte": _quotient(bits, np.where(lengths, sizes, 0)),
            "length": lengths,
        }

    def judge(self, measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
        """Keep what is inside the limits, and all short documents."""
        verdicts = judge_by(self._limits, measured)
        least = self._config.min_length
        lengths: list[int] = measured["length"].tolist()
        return [verdict if length >= least else None for length, verdict in zip(lengths, verdicts, strict=True)]

    @cached_property
    def _ngrams(self) -> NGrams:
        assert self._folder is not None
        return NGrams.open(self._folder)

    def _by_words(self, texts: Sequence[str]) -> tuple[Floats, NDArray[np.int64]]:
        words = words_of(texts)
        return self._ngrams.bits(words), words.counts

    def _by_tokens(self, texts: Sequence[str], model: FilterModel) -> tuple[Floats, NDArray[np.int64]]:
        from llmkit.inference import score_texts

        with model.at_work() as opened:
            context = self._config.context or opened.model.config.context
            found = score_texts(
                opened.model, opened.tokenizer, texts, context=context, batch_size=self._config.batch_size
            )
        return found.nats / math.log(2), np.array(found.tokens, np.int64)


def _quotient(numbers: Floats, of: NDArray[np.int64]) -> Floats:
    """Not a number where something is divided by 0."""
    out = np.full(len(numbers), np.nan)
    np.divide(numbers, of, out=out, where=of != 0)
    return out
