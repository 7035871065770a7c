"""Metrics of answers against references: BLEU and chrF (sacreBLEU), ROUGE (rouge-score), exact match, means."""

from __future__ import annotations

import importlib.metadata
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from llmkit.eval.metrics.base import Better, Floats, Metric, ratio, with_count

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


class Answer(NamedTuple):
    """What a model answered and what it should have answered."""

    output: str
    reference: str


def bleu() -> Metric[Answer]:
    """Corpus BLEU as sacreBLEU computes it (Post 2018), 0 to 100."""
    from sacrebleu.metrics import BLEU

    # `force` only silences a remark about texts that look tokenized.
    return _sacrebleu("bleu", lambda: BLEU(force=True))


def chrf() -> Metric[Answer]:
    """Corpus chrF as sacreBLEU computes it (Popović 2015), 0 to 100."""
    from sacrebleu.metrics import CHRF

    return _sacrebleu("chrf", CHRF)


def _sacrebleu(name: str, make: Callable[[], Any]) -> Metric[Answer]:
    scorer = make()
    probe = make()
    probe.corpus_score(["a"], [["a"]])  # the signature is known once references have been seen

    def statistics(examples: Sequence[Answer]) -> Floats:
        outputs = [example.output for example in examples]
        references = [[example.reference for example in examples]]
        return np.asarray(scorer._extract_corpus_statistics(outputs, references), dtype=np.float64)

    def combine(totals: Floats) -> Floats:
        rows = totals.astype(np.int64).tolist()
        return np.asarray([scorer._compute_score_from_stats(row).score for row in rows], dtype=np.float64)

    return Metric(name, f"sacrebleu {probe.get_signature()}", "higher", statistics, combine)


def rouge(kind: str) -> Metric[Answer]:
    """Mean F1 of ROUGE-1, ROUGE-2 or ROUGE-L as rouge-score computes it (Lin 2004), 0 to 1.

    Args:
        kind: one of `ROUGE_TYPES`.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=False)

    def score(example: Answer) -> float:
        return float(scorer.score(example.reference, example.output)[kind].fmeasure)

    version = importlib.metadata.version("rouge-score")
    return mean(kind, f"mean F1 | rouge-score {version} | stemmer:no | tokenizer:default", "higher", score)


def normalized(text: str) -> str:
    """Unicode NFC, runs of white space as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def exact_match() -> Metric[Answer]:
    """Share of answers equal to the reference after `normalized`."""
    return mean(
        "exact_match",
        "share of answers equal to the reference | NFC, white space collapsed, case kept",
        "higher",
        lambda example: float(normalized(example.output) == normalized(example.reference)),
    )


def contains() -> Metric[Answer]:
    """Share of answers in which the reference occurs after `normalized` and case folding."""
    return mean(
        "contains",
        "share of answers in which the reference occurs | NFC, white space collapsed, case folded",
        "higher",
        lambda example: float(normalized(example.reference).casefold() in normalized(example.output).casefold()),
    )


def length() -> Metric[Answer]:
    """Mean number of characters of the answers."""
    return mean("length", "mean Unicode characters of an answer", None, lambda example: len(example.output))


def mean(name: str, signature: str, better: Better | None, score: Callable[[Any], float]) -> Metric[Any]:
    """The mean of one number for each example."""

    def statistics(examples: Sequence[Any]) -> Floats:
        return with_count([score(example) for example in examples])

    return Metric(name, signature, better, statistics, ratio)


def sign(value: float) -> int:
    """1, 0 or -1."""
    return (value > 0) - (value < 0)
