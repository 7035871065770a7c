"""Both ways of computing attention against float64, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llmkit.model.attention import Scoring, Visibility, attend

PLAIN = Scoring(16**-0.5)


def _written_out(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scoring: Scoring = PLAIN) -> Tensor:
    """Softmax attention in float64; `seen` is bool [B, L, S]."""
    query, key, value = query.double(), key.double(), value.double()
    group = query.shape[1] // key.shape[1]
    rows = []
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head // group].transpose(1, 2) * scoring.scale
        if scoring.softcap is not None:
            scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
        weights = scores.masked_fill(~seen, -math.inf).exp()
        nothing = 0.0 if scoring.sinks is None else scoring.sinks[head].double().exp()
        rows.append(weights / (weights.sum(-1, keepdim=True) + nothing) @ value[:, head // group])
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("length", [2, 60, 300], ids=lambda length: f"length{length}")
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masking", ["causal", "padded", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_and_its_gradients(length: int, kv_heads: int, masking: str, dtype: torch.dtype) -> None:
    """In bf16 the shorter sequences take the explicit path, the longest the flash kernel."""
    batch, heads, width = 2, 4, 16
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, heads, length, width), (batch, kv_heads, length, width), (batch, kv_heads, length, width)]
    exact = [torch.randn(shape, generator=generator).to(dtype).double().requires_grad_() for shape in shapes]
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    gradient = torch.randn(shapes[0], generator=generator)
    mask = torch.arange(length) < torch.tensor([[length], [(length + 1) // 2]])
    seen = {
        "causal": torch.ones(length, length, dtype=torch.bool).tril().expand(batch, -1, -1),
        "padded": mask[:, None, :].expand(-1, length, -1),
        "none": torch.ones(batch, length, length, dtype=torch.bool),
    }[masking]
    visibility = Visibility(masking == "causal", mask=mask[:, None, None, :] if masking == "padded" else None)

    expected = _written_out(exact[0], exact[1], exact[2], seen)
    actual = attend(inputs[0], inputs[1], inputs[2], visibility, PLAIN)
    assert actual.dtype == dtype
    expected.backward(gradient.double())
    actual.backward(gradient.to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert (actual - expected).norm() < tolerance * expected.norm()
    for one, two in zip(inputs, exact, strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert (one.grad - two.grad).norm() < tolerance * two.grad.norm()

    with torch.no_grad():
        assert torch.equal(attend(inputs[0], inputs[1], inputs[2], visibility, PLAIN), actual)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_new_token_over_a_cache(batch: int, kv_heads: int, dtype: torch.dtype) -> None:
    query = torch.randn(batch, 1, 4, 16).transpose(1, 2).to(dtype)
    key, value = torch.randn(2, batch, kv_heads, 40, 16).to(dtype)[:, :, :, :30]
    seen = torch.arange(30) < torch.randint(1, 31, (batch, 1))
    expected = _written_out(query, key, value, seen[:, None, :])
    actual = attend(query, key, value, Visibility(False, mask=seen[:, None, None, :]), PLAIN)
    assert actual.shape == query.shape
    assert (actual - expected).norm() < (1e-5 if dtype == torch.float32 else 0.02) * expected.norm()


@pytest.mark.parametrize("length", [8, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_sees_nothing_stays_finite(length: int, dtype: torch.dtype) -> None:
    query, key, value = torch.randn(3, 2, 2, length, 16).to(dtype).requires_grad_()
    mask = torch.zeros(2, 1, 1, length, dtype=torch.bool)
    mask[0] = True
    mixed = attend(query, key, value, Visibility(False, mask=mask), PLAIN)
    mixed.sum().backward()
    assert mixed.isfinite().all()


def test_dropout_keeps_the_mean() -> None:
    query, key, value = torch.randn(3, 1, 2, 64, 32).to(torch.bfloat16)
    plain = attend(query, key, value, Visibility(False), Scoring(32**-0.5)).float()
    dropped = torch.stack(
        [attend(query, key, value, Visibility(False), Scoring(32**-0.5, dropout=0.3)).float() for _ in range(400)]
    )
    assert (dropped.mean(0) - plain).norm() < 0.1 * plain.norm()
    assert (dropped[0] - plain).norm() > 0.1 * plain.norm()


@pytest.mark.parametrize(
    "scoring", [PLAIN, Scoring(0.2, softcap=2.0), Scoring(0.3, sinks=torch.tensor([0.0, 1, -1, 3]))]
)
@pytest.mark.parametrize("length", [1, 5, 6, 70, 200])
@pytest.mark.parametrize("masking", ["causal", "both-ways", "padded"])
def test_windows_and_scorings(length: int, masking: str, scoring: Scoring) -> None:
    """Below, at and past the window, whose chunks begin and end within the sequence."""
    generator = torch.Generator().manual_seed(length)
    query = torch.randn(2, 4, length, 16, generator=generator, requires_grad=True)
    key, value = torch.randn(2, 2, 2, length, 16, generator=generator)
    for window in (None, 5, 64):
        places = torch.arange(length)
        distance = places[:, None] - places[None, :]
        reach = window or length
        seen = (distance >= 0) & (distance < reach) if masking == "causal" else distance.abs() <= reach
        real = places < torch.tensor([[length], [(length + 1) // 2]] if masking == "padded" else [[length]])
        visibility = Visibility(
            masking == "causal", mask=real[:, None, None, :] if masking == "padded" else None, window=window
        )
        actual = attend(query, key, value, visibility, scoring)
        expected = _written_out(query, key, value, (seen & real[:, None, :]).expand(2, -1, -1), scoring)
        rows = real[:, None, :, None].expand_as(actual)
        assert torch.allclose(actual[rows].double(), expected[rows], atol=1e-5), window
        assert actual.isfinite().all()


def test_long_explicit_scores_come_in_parts() -> None:
    """More rows than are computed at once."""
    query = torch.randn(1, 2, 1100, 8)
    key, value = torch.randn(2, 1, 1, 1100, 8)
    scoring = Scoring(8**-0.5, softcap=3.0)
    seen = torch.ones(1, 1100, 1100, dtype=torch.bool).tril()
    actual = attend(query, key, value, Visibility(True), scoring)
    assert torch.allclose(actual.double(), _written_out(query, key, value, seen, scoring), atol=1e-5)
