"""Drawing the next token of many sequences at once. Shapes: B sequences, V vocabulary, C candidate tokens."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from llmkit.model.sampling import Sampling

# First guess of how many tokens a nucleus holds; more are sorted only where it holds more.
_NUCLEUS_GUESS = 64


def uniforms(seed: int, key: int, sample: int, count: int) -> Tensor:
    """The draws of one answer: float64 [count] in [0, 1), a function of the arguments alone.

    A longer answer continues the draws of a shorter one.
    """
    digest = hashlib.sha256(f"{seed}/{key}/{sample}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def draw(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """The next token of each sequence.

    Args:
        logits_BV: fp32 [B, V].
        uniforms_B: float64 [B] in [0, 1): where in the cumulative distribution to draw; unused at temperature 0.
        sampling: temperature and filters.

    Returns:
        Token ids int64 [B]; their log-probabilities under the model, fp32 [B]; those under the distribution drawn from.
    """
    if sampling.temperature == 0:
        tokens_B = logits_BV.argmax(dim=-1)
        return tokens_B, _logprobs(logits_BV, tokens_B), torch.zeros_like(logits_BV[:, 0])
    plain = sampling.temperature == 1
    scaled_BV = logits_BV if plain else logits_BV / sampling.temperature
    vocabulary = logits_BV.shape[1]
    if sampling.top_k is None and sampling.top_p == 1:
        tokens_B, _ = _invert(torch.softmax(scaled_BV, dim=-1), uniforms_B)
        logprobs_B = _logprobs(logits_BV, tokens_B)
        return tokens_B, logprobs_B, logprobs_B if plain else _logprobs(scaled_BV, tokens_B)
    if sampling.top_k is not None:
        values_BC, candidates_BC = scaled_BV.topk(min(sampling.top_k, vocabulary), dim=-1)
        probabilities_BC = torch.softmax(values_BC, dim=-1)
    else:
        probabilities_BC, candidates_BC = _nucleus_candidates(torch.softmax(scaled_BV, dim=-1), sampling.top_p)
    if sampling.top_p < 1:
        before_BC = probabilities_BC.cumsum(dim=-1, dtype=torch.float64) - probabilities_BC
        probabilities_BC = probabilities_BC.masked_fill(before_BC >= sampling.top_p, 0.0)
    places_B, sampling_logprobs_B = _invert(probabilities_BC, uniforms_B)
    tokens_B = candidates_BC.gather(1, places_B[:, None])[:, 0]
    return tokens_B, _logprobs(logits_BV, tokens_B), sampling_logprobs_B


def _nucleus_candidates(probabilities_BV: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Probabilities and ids of the most likely tokens, sorted, enough of them to reach `top_p` in each row."""
    vocabulary = probabilities_BV.shape[1]
    count = min(_NUCLEUS_GUESS, vocabulary)
    while True:
        sorted_BC, candidates_BC = probabilities_BV.topk(count, dim=-1)
        if count == vocabulary or bool((sorted_BC.sum(dim=-1) > top_p).all()):
            return sorted_BC, candidates_BC
        count = min(4 * count, vocabulary)


def _invert(probabilities_BC: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """Places drawn by inverting the cumulative distribution of unnormalised probabilities, and their log-probabilities.

    In float64 a uniform below 1 stays below the total, so a place of probability zero is never drawn.
    """
    cumulative_BC = probabilities_BC.cumsum(dim=-1, dtype=torch.float64)
    total_B1 = cumulative_BC[:, -1:]
    places_B1 = torch.searchsorted(cumulative_BC, uniforms_B[:, None] * total_B1, right=True)
    drawn_B1 = probabilities_BC.gather(1, places_B1)
    return places_B1[:, 0], (drawn_B1 / total_B1).log()[:, 0].to(torch.float32)


def _logprobs(logits_BV: Tensor, tokens_B: Tensor) -> Tensor:
    return logits_BV.gather(1, tokens_B[:, None])[:, 0] - logits_BV.logsumexp(dim=-1)
