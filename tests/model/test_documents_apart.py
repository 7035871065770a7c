from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmkit.model.documents import documents_of
from llmkit.model.initialization import build
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer
from llmkit.train.blocks import compile_blocks

VOCABULARY, ROWS, LENGTH = 50, 3, 40
STARTS = ([0, 1, 9, 30], [0], [0, 17, 18, 39])
"""Where documents begin in each row: of one token, of many, and of the whole row."""


def model(family: str, **changes: int) -> Transformer:
    spec = ModelSpec.model_validate(
        {"family": family, "layers": 3, "width": 32, "heads": 4, "context": 64, "init_std": 0.2, **changes}
    )
    config = spec.resolve(VOCABULARY, pad_id=0)
    # Smaller than most documents; the families that say nothing of windows in a spec have one too.
    return build(config if config.window is None else config.model_copy(update={"window": 6}), seed=1)


def rows() -> Tensor:
    return torch.randint(1, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))


def borders() -> np.ndarray:
    return np.array([row * LENGTH + start for row, starts in enumerate(STARTS) for start in starts if start])


def alone() -> Iterator[tuple[int, slice]]:
    for row, starts in enumerate(STARTS):
        for begin, end in zip(starts, [*starts[1:], LENGTH], strict=True):
            yield row, slice(begin, end)


def packed(network: Transformer, ids: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        return network.hidden(ids, documents=documents_of(ROWS, LENGTH, borders()))


def separately(network: Transformer, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The same by one forward pass for each document."""
    found = torch.zeros(ROWS, LENGTH, network.config.width)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        for row, span in alone():
            found[row, span] = network.hidden(ids[row : row + 1, span])[0]
    return found


# Rotary and learned positions, causal and not, windows, soft-caps, sinks, shared heads.
FAMILIES: dict[str, dict[str, int]] = {
    "llama": {"kv_heads": 2},
    "gpt2": {},
    "gemma2": {"head_width": 8},
    "gpt_oss": {"experts": 4, "expert_width": 16, "head_width": 8},
    "bert": {},
    "modernbert": {},
}


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_documents_compute_what_each_does_alone(family: str, dtype: torch.dtype) -> None:
    network, ids = model(family, **FAMILIES[family]), rows()
    together, apart = packed(network, ids, dtype), separately(network, ids, dtype)
    weights = torch.randn(together.shape, generator=torch.Generator().manual_seed(2))
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    if family != "gpt_oss" or dtype == torch.float32:
        # In bfloat16 a router's choice may fall the other way.
        assert (together - apart).abs().max() < tolerance * apart.abs().max()
    if dtype == torch.bfloat16:
        return
    ours = torch.autograd.grad((together * weights).sum(), list(network.parameters()), allow_unused=True)
    theirs = torch.autograd.grad((apart * weights).sum(), list(network.parameters()), allow_unused=True)
    for (name, _), mine, reference in zip(network.named_parameters(), ours, theirs, strict=True):
        if reference is not None:
            assert mine is not None
            assert (mine - reference).abs().max() < 1e-4 * max(1.0, float(reference.abs().max())), name


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_reaches_another_document(family: str, dtype: torch.dtype) -> None:
    network, ids = model(family), rows()
    before = packed(network, ids, dtype)
    for row, span in list(alone())[:4]:
        changed = ids.clone()
        changed[row, span] = changed[row, span] % (VOCABULARY - 1) + 1
        difference = (packed(network, changed, dtype) - before).abs().amax(-1)
        assert (difference[row, span] > 0).any()
        difference[row, span] = 0
        assert not difference.any()


def test_rows_of_one_document_each_need_nothing() -> None:
    assert documents_of(3, 8, np.array([], dtype=np.int64)) is None
    assert documents_of(3, 8, np.array([0, 8, 16])) is None


def test_documents_too_long_for_one_product_of_scores() -> None:
    network = model("gemma2", context=2048, head_width=8, layers=1)
    ids = torch.randint(1, VOCABULARY, (1, 1300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = network.hidden(ids, documents=documents_of(1, 1300, np.array([1100])))
        first, second = network.hidden(ids[:, :1100]), network.hidden(ids[:, 1100:])
    assert (together - torch.cat((first, second), 1)).abs().max() < 1e-4


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 50), st.data())
def test_every_token_has_one_place_in_a_group_of_its_document(rows: int, length: int, data: st.DataObject) -> None:
    inside = data.draw(st.lists(st.integers(0, rows * length - 1), max_size=40))
    found = documents_of(rows, length, np.array(inside, dtype=np.int64))
    starts = sorted({*inside, *(row * length for row in range(rows))})
    if found is None:
        assert len(starts) == rows
        return
    assert found.ends.tolist() == [*starts, rows * length]
    expected = [place - max(start for start in starts if start <= place) for place in range(rows * length)]
    assert found.positions.flatten().tolist() == expected
    tokens = torch.arange(rows * length)
    places = found.gather(tokens)
    assert torch.equal(found.scatter(places), tokens)
    seen: list[int] = []
    for group in found.groups:
        members = group.of(places[:, None, None])[..., 0, 0]
        for number, row in enumerate(members.tolist()):
            real = len(row) if group.real is None else int(group.real[number].sum())
            member = row[:real]
            assert member == list(range(member[0], member[0] + real))
            assert member[0] in starts
            seen += member
            # At least three quarters of a group's places are tokens, but for the shortest documents.
            assert real >= 0.75 * group.length or group.length <= 16
    assert sorted(seen) == tokens.tolist()


def test_compiled_blocks_take_any_documents_without_compiling_again() -> None:
    network, ids = model("llama", layers=2), rows()
    expected = [
        network.hidden(ids, documents=documents_of(ROWS, LENGTH, np.array(inside))) for inside in ([7], [3, 50])
    ]
    for block in compile_blocks(network):
        block.compile(backend="eager")
    first = network.hidden(ids, documents=documents_of(ROWS, LENGTH, np.array([7])))
    with torch.compiler.set_stance("fail_on_recompile"):
        second = network.hidden(ids, documents=documents_of(ROWS, LENGTH, np.array([3, 50])))
    for ours, theirs in zip((first, second), expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-5
