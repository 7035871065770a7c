"""Drawing tokens: filtered distributions against a float64 reference, and the uniform draws themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llmkit.model.draw import draw, uniforms
from llmkit.model.sampling import Sampling


def _reference(logits: Tensor, sampling: Sampling) -> list[float]:
    """The distribution to draw from, written out token by token in float64."""
    scaled = [value / sampling.temperature for value in logits.double().tolist()]
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    kept = order[: sampling.top_k]
    total = math.fsum(math.exp(scaled[token]) for token in kept)
    nucleus, reached = [], 0.0
    for token in kept:
        if reached >= sampling.top_p:
            break
        nucleus.append(token)
        reached += math.exp(scaled[token]) / total
    total = math.fsum(math.exp(scaled[token]) for token in nucleus)
    return [math.exp(scaled[token]) / total if token in nucleus else 0.0 for token in range(len(scaled))]


SETTINGS = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 1000},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"top_p": 1e-6},
    {"temperature": 3.0, "top_p": 0.999},
    {"temperature": 0.7, "top_k": 12, "top_p": 0.8},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("vocabulary", [40, 700])
def test_the_distribution_drawn_from(settings: dict[str, float], vocabulary: int) -> None:
    """Evenly spaced uniforms give each token its probability to within two steps of the grid."""
    sampling = Sampling.model_validate(settings)
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(3)) * 2
    expected, count = _reference(logits, sampling), 20_000
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens, logprobs, sampling_logprobs = draw(logits.expand(count, -1), grid, sampling)
    found = torch.bincount(tokens, minlength=vocabulary) / count
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), atol=2 / count, rtol=0)
    assert all(expected[token] > 0 for token in set(tokens.tolist()))
    plain = torch.log_softmax(logits.double(), dim=-1)
    torch.testing.assert_close(logprobs.double(), plain[tokens], atol=1e-5, rtol=1e-5)
    filtered = torch.tensor([math.log(expected[token]) for token in tokens.tolist()], dtype=torch.float64)
    torch.testing.assert_close(sampling_logprobs.double(), filtered, atol=1e-5, rtol=1e-5)


def test_rows_are_drawn_apart() -> None:
    """Each row has its own logits, nucleus and uniform."""
    sampling = Sampling(top_p=0.9)
    logits = torch.randn(16, 300) * torch.linspace(0.01, 6, 16)[:, None]
    at = torch.rand(16, dtype=torch.float64)
    together = draw(logits, at, sampling)
    for row in range(16):
        alone = draw(logits[row : row + 1], at[row : row + 1], sampling)
        assert alone[0].item() == together[0][row].item()
        assert alone[2].item() == pytest.approx(together[2][row].item(), abs=1e-6)


def test_extreme_uniforms_draw_possible_tokens() -> None:
    logits = torch.full((2, 50), -1e9)
    logits[:, 20] = 0.0
    for last in (0.0, 1 - 2**-53):
        for settings in SETTINGS:
            at = torch.full((2,), last, dtype=torch.float64)
            assert draw(logits, at, Sampling.model_validate(settings))[0].tolist() == [20, 20]


def test_temperature_zero_takes_the_most_likely() -> None:
    logits = torch.randn(5, 30)
    tokens, logprobs, sampling_logprobs = draw(logits, torch.zeros(5, dtype=torch.float64), Sampling(temperature=0))
    assert torch.equal(tokens, logits.max(dim=1).indices)
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, dim=1).max(dim=1).values)
    assert sampling_logprobs.eq(0).all()


def test_uniforms_are_functions_of_their_arguments() -> None:
    assert torch.equal(uniforms(1, 2, 3, 10), uniforms(1, 2, 3, 40)[:10])
    assert torch.equal(uniforms(1, 2, 3, 1), uniforms(1, 2, 3, 400)[:1])
    others = [uniforms(*key, 10) for key in ((1, 2, 3), (1, 3, 2), (2, 1, 3), (12, 3, 0), (1, 23, 0), (1, 2, 4))]
    assert len({tuple(values.tolist()) for values in others}) == len(others)


def test_uniforms_are_uniform_within_and_across_answers() -> None:
    """Chi-square of 64 cells, 63 degrees of freedom: 103.4 is passed once in a thousand."""
    within = uniforms(0, 0, 0, 64_000)
    across = torch.cat([uniforms(0, key, 0, 1) for key in range(12_800)])
    for values in (within, across):
        counts = torch.bincount((values * 64).long(), minlength=64).double()
        expected = len(values) / 64
        assert ((counts - expected) ** 2 / expected).sum().item() < 103.4
    neighbours = torch.stack([within[:-1], within[1:]])
    assert abs(torch.corrcoef(neighbours)[0, 1].item()) < 0.015
