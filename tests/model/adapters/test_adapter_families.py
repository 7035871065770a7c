"""DoRA on every linear map of every family's blocks, to PEFT and back: names, stacks and interleaved rows."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers
from adapter_samples import assert_close, batch, move

from llmkit.model.adapters.attach import attach
from llmkit.model.adapters.config import AdapterConfig
from llmkit.model.adapters.peft import load_adapter, save_adapter
from llmkit.model.families import FAMILIES
from llmkit.model.initialization import build
from llmkit.model.load import load_model
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec


@pytest.mark.parametrize("name", FAMILIES)
def test_to_peft_and_back(name: str, tmp_path: Path) -> None:
    spec = ModelSpec(family=name, layers=2, width=32, heads=4, context=64, init_std=0.2)
    save_model(build(spec.resolve(61, pad_id=None), seed=0), tmp_path / "base")
    ours = load_model(tmp_path / "base")
    attach(ours, AdapterConfig(kind="dora", rank=4), seed=1)
    move(ours)
    expected = ours(batch()).detach()
    save_adapter(ours, tmp_path / "ours")
    family = FAMILIES[name]
    reference = getattr(transformers, family.architectures[family.own_head()]).from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "ours").eval()
    assert_close(theirs(input_ids=batch()).logits.detach(), expected)
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "base")
    load_adapter(again, tmp_path / "theirs")
    assert torch.equal(again(batch()), expected)
