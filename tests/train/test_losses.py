"""Cross-entropy, alone and fused with the output projection, against float64 and finite closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from llmkit.train.losses import cross_entropy_sum, linear_cross_entropy_sum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 2), (7, 33), (300, 50)])
def test_cross_entropy_and_its_gradient_are_those_of_float64(dtype: torch.dtype, rows: int, vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(rows, vocabulary, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    found = cross_entropy_sum(logits, targets)
    (found.sum * 0.5).backward()
    exact = logits.detach().double().numpy()
    shifted = np.exp(exact - exact.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    expected = -np.log(probabilities[np.arange(rows), targets.numpy()]).sum()
    right = (exact.max(1) == exact[np.arange(rows), targets.numpy()]).sum()
    probabilities[np.arange(rows), targets.numpy()] -= 1
    assert found.sum.dtype == torch.float32
    assert found.sum.item() == pytest.approx(expected, rel=1e-5)
    assert found.right.item() == right
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype]
    np.testing.assert_allclose(logits.grad.double().numpy(), probabilities * 0.5, rtol=tolerance * 10, atol=tolerance)


def test_cross_entropy_survives_extreme_logits() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], requires_grad=True)
    found = cross_entropy_sum(logits, torch.tensor([1, 2])).sum
    found.backward()
    assert found.item() == pytest.approx(2e4 + math.log(3))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def _exact(
    features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None, z_loss: float
) -> tuple[Tensor, list[Tensor]]:
    """The loss and the gradients of features, weight and bias by autograd in float64."""
    wide = [tensor.detach().double().requires_grad_() for tensor in (features, weight) if tensor is not None]
    shift = None if bias is None else bias.detach().double().requires_grad_()
    logits = wide[0] @ wide[1].t() + (0 if shift is None else shift)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    loss = loss + z_loss * torch.logsumexp(logits, dim=1).square().sum()
    inputs = wide if shift is None else [*wide, shift]
    return loss.detach(), list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("tokens", [1, 37, 1100])
def test_the_fused_loss_is_that_of_whole_logits(
    tokens: int, z_loss: float, softcap: float | None, with_bias: bool
) -> None:
    """With 9,000 words in the vocabulary, 1,100 tokens come in three parts."""
    generator = torch.Generator().manual_seed(tokens)
    features = torch.randn(tokens, 16, generator=generator).requires_grad_()
    weight = torch.randn(9000, 16, generator=generator).requires_grad_()
    bias = torch.randn(9000, generator=generator).requires_grad_() if with_bias else None
    targets = torch.randint(9000, (tokens,), generator=generator)
    found = linear_cross_entropy_sum(features, weight, targets, bias=bias, softcap=softcap, z_loss=z_loss)
    (found.sum * 2).backward()
    loss, gradients = _exact(features, weight, bias, targets, softcap, z_loss)
    assert found.sum.item() == pytest.approx(loss.item(), rel=1e-5)
    logits = features @ weight.t() + (0 if bias is None else bias)
    assert found.right == (logits.argmax(1) == targets).sum()
    for tensor, gradient in zip((features, weight, bias), gradients, strict=False):
        assert tensor is not None
        assert tensor.grad is not None
        assert (tensor.grad.double() - 2 * gradient).abs().max() <= 1e-5 * 2 * gradient.abs().max()


def test_the_fused_loss_under_autocast_is_near_that_of_float64() -> None:
    features = torch.randn(700, 64, requires_grad=True)
    weight = torch.randn(50, 64, requires_grad=True)
    targets = torch.randint(50, (700,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_cross_entropy_sum(features, weight, targets)
    found.sum.backward()
    loss, gradients = _exact(features, weight, None, targets, None, 0.0)
    assert found.sum.item() == pytest.approx(loss.item(), rel=1e-2)
    for tensor, gradient in zip((features, weight), gradients, strict=True):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.float32
        assert (tensor.grad.double() - gradient).norm() < 0.02 * gradient.norm()


def test_frozen_weights_get_no_gradient() -> None:
    features, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8)
    linear_cross_entropy_sum(features, weight, torch.arange(5)).sum.backward()
    assert features.grad is not None
    assert weight.grad is None
    with torch.no_grad():
        assert not linear_cross_entropy_sum(features, weight, torch.arange(5)).sum.requires_grad
