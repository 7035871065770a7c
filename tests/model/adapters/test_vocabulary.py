"""More tokens: what the new rows are, and that embeddings, head and adapters agree wherever they go."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers
from adapter_samples import VOCABULARY, assert_close, batch, move, reference
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import ModelError
from llmkit.model.adapters.attach import attach, merge
from llmkit.model.adapters.config import AdapterConfig
from llmkit.model.adapters.open import open_adapted
from llmkit.model.adapters.peft import load_adapter, save_adapter
from llmkit.model.adapters.vocabulary import grow_vocabulary
from llmkit.model.initialization import build
from llmkit.model.load import load_model
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec

HEADS = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "gpt2": ("GPT2LMHeadModel", {}),
    "bert": ("BertForMaskedLM", {}),
    "bert-untied": ("BertForMaskedLM", {"tie_word_embeddings": False}),
}


@pytest.mark.parametrize("name", HEADS)
def test_new_rows_are_the_mean_and_nothing_else_changes(name: str, tmp_path: Path) -> None:
    architecture, values = HEADS[name]
    reference(architecture, tmp_path, **values)
    model = load_model(tmp_path)
    before = model(batch()).detach()
    token = model.embeddings.token.weight.detach().clone()
    grow_vocabulary(model, 64)
    after = model(batch()).detach()
    assert after.shape[-1] == model.config.vocab_size == 64
    assert torch.equal(after[..., :VOCABULARY], before)
    # A row that is the mean of the others has the mean of their logits.
    for column in range(VOCABULARY, 64):
        assert_close(after[..., column], before.mean(-1))
    torch.testing.assert_close(model.embeddings.token.weight[62], token.mean(0), rtol=0, atol=1e-6)
    save_model(model, tmp_path / "grown")
    theirs = getattr(transformers, architecture).from_pretrained(tmp_path / "grown").eval()
    assert_close(theirs(input_ids=batch()).logits.detach(), after)
    assert_close(load_model(tmp_path / "grown")(batch()).detach(), after)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 200), known=st.integers(1, 200), size=st.integers(1, 300))
def test_padding_is_used_first_and_kept(rows: int, known: int, size: int) -> None:
    known = min(known, rows)
    model = build(
        ModelSpec(family="llama", layers=1, width=8, heads=1, context=8, mlp_width=8).resolve(rows, pad_id=None), seed=0
    )
    old = model.embeddings.token.weight.detach().clone()
    grow_vocabulary(model, size, known=known)
    new = model.embeddings.token.weight.detach()
    if size <= known:
        assert torch.equal(new, old)
        return
    assert len(new) == model.config.vocab_size == model.head.projection.out_features >= max(size, rows)
    assert len(new) == (max(size, rows) if rows % 64 else -(-max(size, rows) // 64) * 64)
    assert torch.equal(new[:known], old[:known])
    mean = old[:known].double().mean(0).float()
    assert torch.equal(new[known:], mean.expand(len(new) - known, -1))


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "bert"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_grown_model_with_an_adapter_through_every_form(name: str, kind: str, tmp_path: Path) -> None:
    architecture, values = HEADS[name]
    base = reference(architecture, tmp_path / "base", **values)
    model = load_model(tmp_path / "base")
    grow_vocabulary(model, 64)
    whole = ["embeddings.token"] if model.config.tie_embeddings else ["embeddings.token", "head.projection"]
    attach(model, AdapterConfig(kind=kind, rank=4, trainable=whole), seed=2)
    move(model)
    ids = batch()
    ids[0, :3] = torch.tensor([61, 62, 63])
    expected = model(ids).detach()
    save_adapter(model, tmp_path / "adapter", base="../base")
    # Opened here on the model as it was.
    again = load_model(tmp_path / "base")
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(again(ids), expected)
    assert torch.equal(open_adapted(tmp_path / "adapter")(ids), expected)
    # By PEFT on the reference, resized.
    base.resize_token_embeddings(64, mean_resizing=False)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert_close(theirs(input_ids=ids).logits.detach(), expected)
    # Merged, saved, opened by both.
    merge(model)
    assert_close(model(ids).detach(), expected)
    save_model(model, tmp_path / "merged")
    assert torch.equal(load_model(tmp_path / "merged")(ids), model(ids))
    opened = getattr(transformers, architecture).from_pretrained(tmp_path / "merged").eval()
    assert_close(opened(input_ids=ids).logits.detach(), expected)
    grow_vocabulary(again_merged := load_model(tmp_path / "merged"), 65)
    assert again_merged.config.vocab_size == 128


def test_with_an_adapter_it_is_too_late() -> None:
    model = build(ModelSpec(family="llama", layers=1, width=8, heads=1, context=8).resolve(9, pad_id=None), seed=0)
    attach(model, AdapterConfig(), seed=0)
    with pytest.raises(ModelError, match="Let it grow first"):
        grow_vocabulary(model, 12)
