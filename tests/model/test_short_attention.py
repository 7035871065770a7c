"""Attention over short sequences in bfloat16, against float64 and against the same maps in float32."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from llmkit.model.initialization import build
from llmkit.model.short_attention import ROWS, fits, short_attention
from llmkit.model.spec import ModelSpec


def _inputs(length: int, heads: int, kv_heads: int, rotated: int) -> tuple[list[Tensor], tuple[Tensor, Tensor] | None]:
    generator = torch.Generator().manual_seed(length)
    parts = [torch.randn(2, length, count, 32, generator=generator) for count in (heads, kv_heads, kv_heads)]
    angles = torch.randn(length, 1, rotated // 2, generator=generator)
    return [part.bfloat16() for part in parts], (angles.cos().bfloat16(), angles.sin().bfloat16()) if rotated else None


def _exact(parts: list[Tensor], rotation: tuple[Tensor, Tensor] | None, causal: bool) -> Tensor:
    """The definition in float64: complex numbers for the rotation, one head at a time."""
    query, key, value = parts
    if rotation is not None:
        query, key = _turned(query, *rotation), _turned(key, *rotation)
    mixed = []
    for head in range(query.shape[2]):
        shared = head * key.shape[2] // query.shape[2]
        scores = torch.einsum("bld,bsd->bls", query[:, :, head], key[:, :, shared]) / math.sqrt(query.shape[3])
        if causal:
            scores = scores.masked_fill(~torch.ones(scores.shape[1:]).tril().bool(), -math.inf)
        mixed.append(scores.softmax(-1) @ value[:, :, shared])
    return torch.stack(mixed, dim=2).flatten(2)


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    half = cosine.shape[-1]
    pairs = torch.complex(x[..., :half].contiguous(), x[..., half : 2 * half].contiguous())
    turned = pairs * torch.complex(cosine.double(), sine.double())
    return torch.cat((turned.real, turned.imag, x[..., 2 * half :]), dim=-1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "rotated"),
    [(2, 1, 1, 32), (ROWS, 2, 2, 0), (ROWS + 1, 4, 2, 32), (200, 6, 1, 16), (256, 2, 2, 32)],
)
def test_values_and_gradients_are_those_of_float64(
    length: int, heads: int, kv_heads: int, rotated: int, causal: bool
) -> None:
    parts, rotation = _inputs(length, heads, kv_heads, rotated)
    ours = [part.clone().requires_grad_() for part in parts]
    wide = [part.double().requires_grad_() for part in parts]
    found = short_attention(*ours, rotation, scale=32**-0.5, causal=causal)
    expected = _exact(wide, rotation, causal)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    found.backward(upstream)
    expected.backward(upstream.double())
    assert (found.double() - expected).norm() < 0.01 * expected.norm()
    for tensor, exact in zip(ours, wide, strict=True):
        assert tensor.grad is not None
        assert exact.grad is not None
        assert (tensor.grad.double() - exact.grad).norm() < 0.015 * exact.grad.norm()
    with torch.no_grad():
        assert torch.equal(found, short_attention(*ours, rotation, scale=32**-0.5, causal=causal))


def test_the_operator_keeps_the_rules_of_torchs_library() -> None:
    (query, key, value), rotation = _inputs(130, 4, 2, 32)
    assert rotation is not None
    parts = [part.requires_grad_() for part in (query, key, value)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    operator = torch.ops.llmkit.short_attention.default
    torch.library.opcheck(operator, (*parts, *rotation, 0.2, True), test_utils=checks)


def test_other_kinds_and_longer_sequences_are_left_to_torch() -> None:
    (query, key, _), _ = _inputs(16, 2, 2, 0)
    assert fits(query, key)
    assert not fits(query.float(), key.float())
    assert not fits(query[:, :1], key[:, :1])
    assert not fits(query[:, :4], key)
    assert not fits(*(part.repeat(1, 20, 1, 1) for part in (query, key)))


def test_a_model_under_autocast_is_near_itself_in_float32() -> None:
    model = build(ModelSpec(family="llama", layers=2, width=64, heads=4, kv_heads=2).resolve(67, pad_id=0), seed=0)
    input_ids = torch.randint(67, (2, 140), generator=torch.Generator().manual_seed(0))

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(input_ids)
        logits.float().square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    for found, expected in zip(gradients(torch.bfloat16), gradients(torch.float32), strict=True):
        assert (found - expected).norm() < 0.05 * expected.norm()


def test_sequences_of_other_lengths_are_compiled_once_more_at_most() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda query, key, value: short_attention(query * 1, key, value, None, scale=0.2, causal=True), backend=counter
    )
    for length in (130, 200, 90, 256, 131, 130):
        parts, _ = _inputs(length, 2, 2, 0)
        found = compiled(*(part.requires_grad_() for part in parts))
        assert torch.equal(found, short_attention(*parts, None, scale=0.2, causal=True))
        found.sum().backward()
    assert counter.frame_count == 2
