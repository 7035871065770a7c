"""Encoders other than BERT, made new and trained; what comes out is opened by transformers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers
from pretrain_samples import FIRST, WORDS, pretrain, tokenizer, write_tokens

from llmkit.model.facts import read_model_facts
from llmkit.model.load import load_model


@pytest.mark.parametrize("family", ["roberta", "distilbert", "modernbert"])
def test_other_encoders_learn_from_both_sides(tmp_path: Path, family: str) -> None:
    using = tokenizer(bos="[CLS]", eos="[SEP]")
    data = write_tokens(tmp_path / "tokens", using=using, separator=using.eos_id)
    settings = {"optimizer": {"name": "muon", "lr": 0.02}, "steps": 60, "batch_size": 32, "evaluate_batches": 2}
    shape = {"family": family, "layers": 2, "width": 32, "heads": 2, "context": 12, "init_std": 0.1}
    outcome = pretrain(tmp_path / "out", data, model=shape, **settings)
    assert outcome.summary["validation_loss"] < 0.8 * math.log(WORDS)
    facts = read_model_facts(tmp_path / "out/model")
    assert (facts["family"], facts["head"], facts["context"]) == (family, "masked-lm", 12)
    reference = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out/model").eval()
    row = torch.tensor([[2, 6, 11, 4, 8, 13, 3]])
    ours = load_model(tmp_path / "out/model")(row)
    assert torch.allclose(ours, reference(row).logits, atol=1e-4)
    # Between its neighbours 11 and 8, the hidden word can be told.
    assert ours[0, 3, FIRST:].softmax(-1).max() > 2 / WORDS
