"""Alignment through an adapter: the reference is the model with its adapter off."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import rlhf_worlds as worlds
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import llmkit.rlhf.stage as stage
from llmkit.config.base import Facts
from llmkit.model.load import load_model
from llmkit.train.memory.machines import named_machine

ADAPTER = {"rank": 4, "alpha": 8, "trainable": ["embeddings.token"]}
FAST = {"optimizer": {"lr": 1e-2}, "evaluate_every": 1000, "log_every": 1, "adapter": ADAPTER}


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    worlds.write_rows(tmp_path / "preferences.jsonl", worlds.preferences(200))
    return tmp_path / "preferences.jsonl"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    worlds.write_rows(tmp_path / "prompts.jsonl", worlds.conversations(60, " red"))
    return tmp_path / "prompts.jsonl"


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_reference_is_the_starting_model(
    algorithm: str, speaker: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit what a second model in memory, opened from the start's directory, gives."""
    values = {
        **FAST,
        "steps": 6,
        "batch_size": 16,
        "rollout": {"max_new_tokens": 3},
        "rewards": ["contains"],
        algorithm: {"kl_coefficient": 0.5},
    }
    itself = worlds.context(tmp_path / "itself", speaker, prompts)
    stage.run(worlds.settings(algorithm, **values), itself)
    second = worlds.context(tmp_path / "second", speaker, prompts)
    monkeypatch.setattr(stage, "reference_of", lambda policy: load_model(speaker).requires_grad_(False))
    stage.run(worlds.settings(algorithm, **values), second)
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (itself.directory / file).read_bytes() == (second.directory / file).read_bytes()
    kl = [row["kl"] for row in worlds.metrics(itself.directory, "train")]
    assert abs(kl[0]) < 1e-6
    assert max(kl) > 1e-4


def test_dpo_starts_from_the_reference_and_saves_both(speaker: Path, preferences: Path, tmp_path: Path) -> None:
    context = worlds.context(tmp_path / "out", speaker, preferences)
    outcome = stage.run(worlds.settings("dpo", steps=15, batch_size=32, dpo={"beta": 0.5}, **FAST), context)
    rows = worlds.metrics(context.directory, "train")
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert rows[-1]["loss"] < 0.5
    assert outcome.facts.kind == "model"
    ids = torch.arange(10, 40)[None]
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(speaker), context.directory / "adapter"
    ).eval()
    ours = load_model(context.directory / "model")
    torch.testing.assert_close(theirs(input_ids=ids).logits, ours(ids), rtol=0, atol=1e-4)


def test_a_reward_model_with_its_new_head(base: Path, preferences: Path, tmp_path: Path) -> None:
    context = worlds.context(tmp_path / "out", base, preferences)
    outcome = stage.run(worlds.settings("reward_model", steps=25, batch_size=32, **FAST), context)
    assert outcome.summary["validation_accuracy"] > 0.8
    ids = torch.arange(10, 40)[None]
    judge = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    theirs = peft.PeftModel.from_pretrained(judge, context.directory / "adapter").eval()
    ours = load_model(context.directory / "model")
    torch.testing.assert_close(theirs(input_ids=ids).logits[:, 0], ours(ids), rtol=0, atol=1e-4)


def test_what_cannot_go_together_and_what_it_takes() -> None:
    known = Facts("model", {"linears": {"mlp.up": [64, 128]}, "layers": 3, "parameters": 100_000, "context": 64})
    values = {"rewards": ["contains"], "adapter": {"merge": False, "base_dtype": "bf16"}}
    found = worlds.settings("grpo", **values).check({"model": known, "data": Facts("file")})
    assert {finding.key for finding in found if finding.key.startswith("adapter")} == {
        "adapter.merge",
        "adapter.base_dtype",
    }
    values = {"rewards": ["contains"], "adapter": {"rank": 2}, "grpo": {"kl_coefficient": 0.1}}
    inputs = {"model": known, "data": Facts("file")}
    memory = stage.plan(worlds.settings("grpo", **values), inputs, named_machine("h100")).memory_bytes
    trained = 3 * 2 * (64 + 128)
    assert memory["frozen weights"] == 400_000
    assert memory["adapter"] == memory["gradients"] == 4 * trained
    assert "reference" not in memory
