"""The CPU's RMS norm of a residual stream, against its formula in float64."""

from __future__ import annotations

import torch
from torch import nn

from llmkit.model import fast_norm


def test_values_and_gradients_are_those_of_float64() -> None:
    """Rows of several parts, the last one smaller."""
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(7, 130, 384, generator=generator)).requires_grad_()
    weight = torch.randn(384, generator=generator).requires_grad_()
    upstream = torch.randn(x.shape, generator=generator).bfloat16()
    found = fast_norm.fast_rms_norm(x, weight, 1e-5)
    found.backward(upstream)
    wide, wide_weight = (tensor.detach().double().requires_grad_() for tensor in (x, weight))
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * wide_weight
    expected.backward(upstream.double())
    assert torch.equal(found, nn.functional.rms_norm(x, (384,), weight, 1e-5).bfloat16())
    # bfloat16 has 8 bits: half a unit in the last place is at most 2^-8 of the value.
    assert ((found.double() - expected).abs() <= 2**-7.99 * expected.abs() + 1e-9).all()
    for tensor, exact in ((x, wide), (weight, wide_weight)):
        assert tensor.grad is not None
        assert exact.grad is not None
        assert (tensor.grad.double() - exact.grad).norm() < 1e-6 * exact.grad.norm()


def test_only_a_plain_norm_of_a_float32_stream_fits() -> None:
    norm, x = nn.RMSNorm(8), torch.zeros(2, 8)
    assert fast_norm.fits(norm, x, torch.bfloat16)
    assert not fast_norm.fits(norm, x, torch.float32)
    assert not fast_norm.fits(norm, x.bfloat16(), torch.bfloat16)
    assert not fast_norm.fits(nn.LayerNorm(8), x, torch.bfloat16)
    norm.register_forward_hook(lambda module, inputs, output: output)
    assert not fast_norm.fits(norm, x, torch.bfloat16)
