"""Filtered distributions against the logits processors of `transformers`; seeded draws against the distributions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llmkit.model.draw import draw, draw_rows, filtered, penalised, uniforms
from llmkit.model.sampling import Sampling

VOCABULARY, ROWS = 900, 6
SETTINGS: list[dict[str, Any]] = [
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 0.6, "min_p": 0.02},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.7, "temperature": 1.5},
    {"top_k": 30, "top_p": 0.9, "min_p": 0.03},
    {"temperature": 2.0, "top_k": 300, "top_p": 0.7},
    {"repetition_penalty": 1.2, "temperature": 0.8, "top_k": 100, "top_p": 0.95, "min_p": 0.01},
]


def _logits() -> Tensor:
    return torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(2)) * 2.5


def _history() -> Tensor:
    return torch.randint(VOCABULARY, (ROWS, 200), generator=torch.Generator().manual_seed(3))


def _theirs(sampling: Sampling) -> Tensor:
    """The distribution of `transformers`, which applies them in this order."""
    steps = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    steps.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        steps.append(MinPLogitsWarper(sampling.min_p))
    scores: Tensor = steps(_history(), _logits().clone())
    return torch.softmax(scores.double(), dim=-1)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_filtered_distribution_is_that_of_transformers(settings: dict[str, Any]) -> None:
    sampling = Sampling.model_validate(settings)
    scaled = penalised(_logits(), _history(), sampling.repetition_penalty) / sampling.temperature
    probabilities, candidates = filtered(scaled, sampling)
    found = torch.zeros(ROWS, VOCABULARY, dtype=torch.float64)
    places = torch.arange(VOCABULARY).expand(ROWS, -1) if candidates is None else candidates
    found.scatter_(1, places, probabilities.double() / probabilities.double().sum(-1, keepdim=True))
    torch.testing.assert_close(found, _theirs(sampling), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_seeded_draws_follow_the_distribution(settings: dict[str, Any]) -> None:
    """Chi-square of many answers' first draws, by Wilson and Hilferty passed about once in a thousand."""
    sampling, count = Sampling.model_validate(settings), 3000
    at = torch.stack([uniforms(7, key, 0, 1)[0] for key in range(count)])
    row, history = _logits()[:1].expand(count, -1), _history()[:1].expand(count, -1)
    tokens, logprobs, sampling_logprobs = draw(row, at, sampling, history)
    expected = _theirs(sampling)[0] * count
    counts = torch.bincount(tokens, minlength=VOCABULARY).double()
    assert counts[expected == 0].sum() == 0
    torch.testing.assert_close(sampling_logprobs.double(), (expected[tokens] / count).log(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logprobs, torch.log_softmax(_logits()[0], -1)[tokens])
    usual = expected >= 5
    observed = torch.cat([counts[usual], counts[~usual].sum()[None]])
    expected = torch.cat([expected[usual], expected[~usual].sum()[None].clamp(min=1e-9)])
    freedom = max(len(expected) - 1, 1)
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    assert (statistic / freedom) ** (1 / 3) < 1 - 2 / (9 * freedom) + 3.1 * (2 / (9 * freedom)) ** 0.5


def test_rows_with_settings_of_their_own() -> None:
    settings = [Sampling.model_validate(SETTINGS[row]) for row in (0, 3, 0, 5, 7)] + [Sampling(temperature=0)]
    at = torch.rand(ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = draw_rows(_logits(), at, settings, _history())
    for row, sampling in enumerate(settings):
        one = slice(row, row + 1)
        alone = draw(_logits()[one], at[one], sampling, _history()[one])
        for whole, part in zip(together, alone, strict=True):
            assert whole[row] == part[0]


def test_the_likeliest_of_wide_rows() -> None:
    """The first of equal ones, wherever it lies, the end of a row that parts do not divide included."""
    for place in (0, 127, 128, 1151, 1152, 1279, 1299):
        scores = torch.zeros(2, 1300)
        scores[0, place:] = 3.0
        scores[1, place] = 3.0
        assert draw(scores, torch.zeros(2, dtype=torch.float64), Sampling(temperature=0))[0].tolist() == [place, place]
