"""Metrics of what a language model says of given text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from llmkit.eval.metrics.base import Better, Floats, Metric, ratio

Scored = Mapping[str, float]
"""What a model says of one text: `nll` (nats), `tokens`, `bytes`, `hits` (tokens that were the likeliest)."""


def loss(how: str) -> Metric[Scored]:
    """Negative log-likelihood of a token, in nats: all texts' sum over all texts' tokens.

    Args:
        how: which tokens are scored given what, for the signature.
    """
    return _corpus_ratio("loss", "nll", "tokens", f"sum of -ln p over tokens | {how}", "lower", ratio)


def perplexity(how: str) -> Metric[Scored]:
    """exp(loss)."""
    signature = f"exp(sum of -ln p over tokens) | {how}"
    return _corpus_ratio("perplexity", "nll", "tokens", signature, "lower", lambda totals: np.exp(ratio(totals)))


def bits_per_byte(how: str) -> Metric[Scored]:
    """Bits that the model needs for a byte of UTF-8 text: comparable between tokenizers."""
    signature = f"sum of -log2 p over UTF-8 bytes | {how}"
    return _corpus_ratio(
        "bits_per_byte", "nll", "bytes", signature, "lower", lambda totals: ratio(totals) / math.log(2)
    )


def token_accuracy(how: str) -> Metric[Scored]:
    """Share of tokens that the model holds for the likeliest."""
    signature = f"tokens that are the argmax over tokens | {how}"
    return _corpus_ratio("token_accuracy", "hits", "tokens", signature, "higher", ratio)


def _corpus_ratio(
    name: str, first: str, second: str, signature: str, better: Better, combine: Callable[[Floats], Floats]
) -> Metric[Scored]:
    def statistics(examples: Sequence[Scored]) -> Floats:
        return np.asarray([[example[first], example[second]] for example in examples], dtype=np.float64)

    return Metric(name, signature, better, statistics, combine)
