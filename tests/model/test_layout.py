"""Weight layouts against explicit indexing, and there and back to the bit."""

from __future__ import annotations

import pytest
import torch

from llmkit.model.families.base import Transfer
from llmkit.model.layout import stored_shapes, to_ours, to_theirs


def _random(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize(
    ("transfer", "shapes"),
    [
        (Transfer(("a",), ("x",)), [(4, 3)]),
        (Transfer(("a",), ("x",), transposed=True), [(4, 3)]),
        (Transfer(("q", "k", "v"), ("x",)), [(8, 3), (4, 3), (4, 3)]),
        (Transfer(("q", "k", "v"), ("x",), transposed=True), [(4, 3), (4, 3), (4, 3)]),
        (Transfer(("q", "k", "v"), ("x",), groups=2), [(8, 3), (4, 3), (4, 3)]),
        (Transfer(("qb", "kb"), ("x",), groups=2), [(8,), (4,)]),
        (Transfer(("a",), ("x0", "x1"), experts=2), [(2, 4, 3)]),
        (Transfer(("g", "u"), ("x",), transposed=True, groups=5, dimension=1), [(2, 5, 3), (2, 5, 3)]),
    ],
)
def test_there_and_back_is_the_identity(transfer: Transfer, shapes: list[tuple[int, ...]]) -> None:
    ours = _random(*shapes)
    theirs = to_theirs(transfer, ours)
    assert [tuple(part.shape) for part in theirs] == stored_shapes(transfer, shapes)
    assert all(part.is_contiguous() for part in theirs)
    assert all(torch.equal(a, b) for a, b in zip(to_ours(transfer, theirs, shapes), ours, strict=True))


def test_groups_alternate() -> None:
    query, key = _random((4, 3), (2, 3))
    (whole,) = to_theirs(Transfer(("q", "k"), ("x",), groups=2), [query, key])
    assert torch.equal(whole, torch.stack([query[0], query[1], key[0], query[2], query[3], key[1]]))


def test_interleaved_transposed_experts() -> None:
    gate, up = _random((2, 5, 3), (2, 5, 3))
    (whole,) = to_theirs(Transfer(("g", "u"), ("x",), transposed=True, groups=5, dimension=1), [gate, up])
    assert whole.shape == (2, 3, 10)
    assert torch.equal(whole[:, :, ::2], gate.transpose(1, 2))
    assert torch.equal(whole[:, :, 1::2], up.transpose(1, 2))


def test_experts_kept_apart_are_each_a_slice() -> None:
    (weight,) = _random((3, 4, 2))
    parts = to_theirs(Transfer(("w",), ("e0", "e1", "e2"), experts=3), [weight])
    assert all(torch.equal(part, weight[expert]) for expert, part in enumerate(parts))
