"""Pretraining of routed experts: the loss is the reference's, and it keeps their use even."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from pretrain_samples import FIRST, WORDS, pretrain, write_tokens
from torch import Tensor

from llmkit.model.initialization import build
from llmkit.model.load import load_model
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.pretrain.batches import causal_batch
from llmkit.pretrain.objective import LanguageModelling

MODEL = {
    "family": "mixtral",
    "layers": 2,
    "width": 32,
    "heads": 2,
    "context": 32,
    "experts": 8,
    "experts_per_token": 2,
    "expert_width": 16,
    "init_std": 0.2,
}


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_the_loss_in_training_is_the_references_with_its_balance(family: str, tmp_path: Path) -> None:
    spec = ModelSpec.model_validate({**MODEL, "family": family, "router_loss_weight": 0.3})
    model = build(spec.resolve(40, pad_id=0), seed=1)
    save_model(model, tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (reference.config.output_router_logits, reference.config.router_aux_loss_coef) == (True, 0.3)
    tokens = np.random.default_rng(0).integers(5, 40, (3, 14))
    made = causal_batch(tokens)
    theirs = reference(input_ids=made.input_ids, output_router_logits=True)
    entropy = F.cross_entropy(theirs.logits.flatten(0, 1), made.targets).item()

    output = LanguageModelling().loss(model.train(), made)
    balance, units = output.metrics["router_loss"]
    assert units == output.weight == made.targets.numel()
    assert float(balance) / units == pytest.approx(theirs.aux_loss.item(), rel=1e-5)
    assert output.sum.item() / units == pytest.approx(entropy + 0.3 * theirs.aux_loss.item(), rel=1e-5)

    measured = LanguageModelling().loss(model.eval(), made)
    assert measured.sum.item() / units == pytest.approx(entropy, rel=1e-5)
    assert not measured.metrics


def _entropies(directory: Path) -> list[float]:
    """Of how often each layer's experts are chosen, in nats; log 8 where use is even."""
    model, routing = load_model(directory / "model"), list[Tensor]()
    words = torch.randint(FIRST, FIRST + WORDS, (32, 32), generator=torch.Generator().manual_seed(0))
    model.hidden(words, routing=routing)
    counts = [torch.bincount(scores.topk(2).indices.flatten(), minlength=8) for scores in routing]
    return [float(torch.special.entr(count / count.sum()).sum()) for count in counts]


def _losses(directory: Path, split: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def test_the_loss_keeps_the_use_of_experts_even(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens")
    found = {}
    for weight in (0.0, 0.1):
        directory = tmp_path / f"{weight}"
        settings = {"model": {**MODEL, "router_loss_weight": weight}, "optimizer": {"lr": 0.01}}
        pretrain(directory, tokens, steps=40, log_every=10, **settings)
        found[weight] = sum(_entropies(directory)) / 2
        assert all(("router_loss" in line) == (weight > 0) for line in _losses(directory, "train"))
        assert all("router_loss" not in line for line in _losses(directory, "validation"))
    assert found[0.1] > found[0.0] + 0.1
    assert found[0.1] > 0.85 * float(np.log(8))
    balance = [line["router_loss"] for line in _losses(tmp_path / "0.1", "train")]
    assert balance[-1] < balance[0]
    assert balance[-1] == pytest.approx(2.0, abs=0.5)
