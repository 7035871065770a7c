"""A micro-batch and a budget that are left to the machine: what is chosen, kept and computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_samples import NEW_CAUSAL, pretrain, write_tokens

from llmkit.pretrain import objective
from llmkit.store.stage import ResolvedInput
from llmkit.train.contract import LossOutput
from llmkit.train.memory import settle

SETTINGS: dict[str, Any] = {"model": {**NEW_CAUSAL, "layers": 3}, "steps": 3, "batch_size": 24, "precision": "fp32"}


@pytest.fixture
def tokens(tmp_path: Path) -> ResolvedInput:
    return write_tokens(tmp_path / "tokens")


def weights(directory: Path) -> bytes:
    return (directory / "model/model.safetensors").read_bytes()


def chosen(directory: Path) -> int:
    found = json.loads((directory / "engine.json").read_text())["micro_batch"]
    assert isinstance(found, int)
    return found


def test_what_is_chosen_is_written_down_and_computes_as_if_it_were_configured(
    tmp_path: Path, tokens: ResolvedInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {"micro_batch_size": "auto", "activation_checkpointing": {"budget": 0.6}}
    monkeypatch.setattr(settle, "available_memory", lambda: 10**12)
    pretrain(tmp_path / "wide", tokens, **SETTINGS, **left)
    assert chosen(tmp_path / "wide") == 24
    pretrain(tmp_path / "plain", tokens, **SETTINGS)
    assert weights(tmp_path / "wide") == weights(tmp_path / "plain")
    # Weights, gradients and optimizer take 0.5 MB, and the activations of a row about 0.2.
    monkeypatch.setattr(settle, "available_memory", lambda: 1_700_000)
    pretrain(tmp_path / "narrow", tokens, **SETTINGS, **left)
    rows = chosen(tmp_path / "narrow")
    assert 1 < rows < 24
    assert 24 % rows == 0
    pretrain(tmp_path / "written", tokens, **SETTINGS, micro_batch_size=rows)
    assert weights(tmp_path / "narrow") == weights(tmp_path / "written")


def test_a_run_that_goes_on_keeps_the_micro_batch(
    tmp_path: Path, tokens: ResolvedInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "available_memory", lambda: 1_700_000)
    pretrain(tmp_path / "run", tokens, **SETTINGS, micro_batch_size="auto")
    rows = chosen(tmp_path / "run")
    monkeypatch.setattr(settle, "available_memory", lambda: 10**12)
    pretrain(tmp_path / "run", tokens, **SETTINGS, micro_batch_size="auto")
    assert chosen(tmp_path / "run") == rows


def test_a_gpu_without_the_memory_gets_smaller_micro_batches(
    tmp_path: Path, tokens: ResolvedInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = objective.LanguageModelling.loss

    def loss(self: Any, model: Any, batch: Any) -> LossOutput:
        if type(batch.input_ids) is torch.Tensor and model.training and len(batch.input_ids) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, model, batch)

    monkeypatch.setattr(objective.LanguageModelling, "loss", loss)
    monkeypatch.setattr(settle, "available_memory", lambda: 10**12)
    pretrain(tmp_path / "run", tokens, **SETTINGS, micro_batch_size="auto")
    assert chosen(tmp_path / "run") == 6
    with pytest.raises(torch.OutOfMemoryError):
        pretrain(tmp_path / "fixed", tokens, **SETTINGS, micro_batch_size=12)
