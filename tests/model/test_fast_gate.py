"""The gate of an MLP on a CPU, against the same operations one by one and against float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from llmkit.model import fast_gate


def test_bits_are_those_of_the_operations_one_by_one() -> None:
    """Of several parts, the last one smaller."""
    generator = torch.Generator().manual_seed(0)
    gate, up, upstream = (torch.randn(3, 100, 700, generator=generator).bfloat16() for _ in range(3))
    ours, plain = ([part.clone().requires_grad_() for part in (gate, up)] for _ in range(2))
    found, expected = fast_gate.gated_silu(*ours), F.silu(plain[0]) * plain[1]
    assert torch.equal(found, expected)
    found.backward(upstream)
    expected.backward(upstream)
    wide = [part.double().requires_grad_() for part in (gate, up)]
    (F.silu(wide[0]) * wide[1]).backward(upstream.double())
    for tensor, reference, exact in zip(ours, plain, wide, strict=True):
        assert tensor.grad is not None
        assert reference.grad is not None
        assert exact.grad is not None
        assert torch.equal(tensor.grad, reference.grad)
        assert (tensor.grad.double() - exact.grad).norm() < 0.01 * exact.grad.norm()


def test_other_kinds_are_left_to_torch() -> None:
    gate = torch.zeros(4, 6, dtype=torch.bfloat16)
    assert fast_gate.fits(gate, gate)
    assert not fast_gate.fits(gate.float(), gate.float())
    assert not fast_gate.fits(gate.t(), gate.t())
