from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_samples import (
    NEW_CAUSAL,
    NEW_MASKED,
    WORDS,
    chain,
    entropy,
    pretrain,
    tokenizer,
    tokens_input,
    write_tokens,
)

from llmkit.config.base import Facts
from llmkit.model.facts import read_model_facts
from llmkit.model.load import load_model
from llmkit.pretrain import stage
from llmkit.pretrain.config import PretrainConfig
from llmkit.store.files import sha256_tree
from llmkit.store.stage import Context, ResolvedInput
from llmkit.tokenizer.tokenizer import Tokenizer

SCRIPT = Path(__file__).with_name("pretrain_samples.py")
ROOT = Path(__file__).parents[2]


def test_a_causal_model_learns_the_chain_to_its_entropy(tmp_path: Path) -> None:
    data = write_tokens(tmp_path / "tokens")
    settings = {"optimizer": {"name": "muon", "lr": 0.02}, "steps": 120, "batch_size": 8, "evaluate_batches": 4}
    outcome = pretrain(tmp_path / "out", data, **settings)
    assert entropy() < 0.5 * math.log(WORDS)
    # The text is a sample: its loss under the true chain differs from the entropy by a few hundredths.
    assert outcome.summary["validation_loss"] == pytest.approx(entropy(), abs=0.06)
    assert outcome.summary["validation_perplexity"] == pytest.approx(math.exp(outcome.summary["validation_loss"]))
    # 700 tokens stand for 2,100 bytes, and 699 of them are predicted.
    bits = outcome.summary["validation_loss"] * 699 / math.log(2) / 2100
    assert outcome.summary["validation_bits_per_byte"] == pytest.approx(bits)
    model = load_model(tmp_path / "out/model")
    probabilities = model(torch.tensor([[6, 7]])).softmax(-1)[0, 1, 6:]
    assert probabilities.argmax().item() == int(chain()[1].argmax())


def test_a_masked_model_learns_from_both_sides(tmp_path: Path) -> None:
    data = write_tokens(tmp_path / "tokens")
    settings = {"optimizer": {"name": "muon", "lr": 0.02}, "steps": 120, "batch_size": 32, "evaluate_batches": 2}
    model = {**NEW_MASKED, "dropout": 0.0, "context": 12, "layers": 2, "init_std": 0.1}
    outcome = pretrain(tmp_path / "out", data, model=model, **settings)
    # All words are about equally frequent: without their neighbours none is found better than by log(WORDS).
    assert outcome.summary["validation_loss"] < 0.55 * math.log(WORDS)
    assert "validation_bits_per_byte" not in outcome.summary
    assert outcome.facts.get("head") == "masked-lm"


def test_the_model_directory_is_whole(tmp_path: Path) -> None:
    outcome = pretrain(tmp_path / "out", write_tokens(tmp_path / "tokens"), steps=2)
    model = tmp_path / "out/model"
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in model.iterdir()
    }
    assert Tokenizer.load(model).digest == tokenizer().digest
    facts = read_model_facts(model)
    assert (facts["vocab_size"], facts["pad_id"], facts["eos_ids"]) == (18, 0, [5])
    assert outcome.facts == Facts("model", {**facts, "chat_template": False})
    assert list(outcome.content) == ["model/*"]
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"]) for line in lines][-2:] == [(2, "train"), (2, "validation")]
    assert outcome.summary["tokens"] == 2 * 8 * 32
    assert outcome.summary["epochs"] == pytest.approx(2 * 8 * 32 / 7999)


def test_facts_foreseen_are_those_found(tmp_path: Path) -> None:
    data = write_tokens(tmp_path / "tokens")
    for model in (NEW_CAUSAL, NEW_MASKED):
        config = PretrainConfig.model_validate({"data": "tokens", "model": model})
        foreseen = config.facts({"data": data.facts})
        found = pretrain(tmp_path / str(model["family"]), data, model=model, steps=1).facts
        assert {name: found.get(name) for name in foreseen.properties} == dict(foreseen.properties)


@pytest.mark.parametrize("model", [NEW_CAUSAL, NEW_MASKED])
def test_what_is_learnt_hardly_depends_on_the_micro_batch(tmp_path: Path, model: dict[str, Any]) -> None:
    data = write_tokens(tmp_path / "tokens")
    weights = []
    for size in (8, 2):
        settings = {
            "model": {**model, "dropout": 0.0},
            "micro_batch_size": size,
            "steps": 3,
            "optimizer": {"eps": 1e-3},
        }
        pretrain(tmp_path / str(size), data, **settings)
        weights.append(load_model(tmp_path / str(size) / "model").state_dict())
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 1e-6, name


@pytest.mark.parametrize(
    ("model", "precision"), [(NEW_CAUSAL, "bf16"), (NEW_MASKED, "fp32")], ids=["causal-bf16", "masked-dropout-fp32"]
)
def test_killed_and_started_again_it_ends_with_the_same_bytes(
    tmp_path: Path, model: dict[str, Any], precision: str
) -> None:
    data = write_tokens(tmp_path / "tokens")
    settings = {"model": model, "precision": precision, "steps": 30, "log_every": 1, "checkpoints": {"every": 3}}
    pretrain(tmp_path / "whole", data, **settings)
    directory = tmp_path / "killed"
    process = subprocess.Popen(
        [
            sys.executable,
            SCRIPT,
            data.path,
            directory,
            *(f"{key}={json.dumps(value)}" for key, value in settings.items()),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    metrics = directory / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count('"train"') >= 10):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert any((directory / "checkpoints").iterdir())
    pretrain(directory, tokens_input(data.path), **settings)
    assert sha256_tree(directory / "model") == sha256_tree(tmp_path / "whole" / "model")


def start_from(directory: Path) -> ResolvedInput:
    facts = {**read_model_facts(directory), "chat_template": False}
    return ResolvedInput("model", "base", directory, "", Facts("model", facts))


def test_training_goes_on_from_another_model(tmp_path: Path) -> None:
    data = write_tokens(tmp_path / "tokens")
    settings = {"optimizer": {"name": "muon", "lr": 0.02}, "evaluate_batches": 4}
    first = pretrain(tmp_path / "first", data, steps=60, **settings)
    start = start_from(tmp_path / "first/model")
    settings["optimizer"] = {"lr": 1e-5}
    second = pretrain(tmp_path / "second", data, start, model="base", steps=1, **settings)
    assert second.summary["validation_loss"] == pytest.approx(first.summary["validation_loss"], abs=1e-3)


def check(tmp_path: Path, data: ResolvedInput, start: ResolvedInput | None = None, **settings: Any) -> list[str]:
    config = PretrainConfig.model_validate({"data": "tokens", "model": NEW_CAUSAL, **settings})
    inputs = {"data": data, **({} if start is None else {"model": start})}
    return [finding.message for finding in stage.check(config, Context("p", 1, tmp_path, inputs))]


def test_too_little_text_is_found_before_the_work(tmp_path: Path) -> None:
    data = write_tokens(tmp_path / "tokens", {"train": 20})
    assert check(tmp_path, data, sequence_length=19) == []
    (message,) = check(tmp_path, data)
    assert message == "the 20 training tokens do not fill one sequence of 32."


def test_a_tokenizer_without_a_mask_token_is_found_before_the_work(tmp_path: Path) -> None:
    data = write_tokens(tmp_path / "tokens", using=tokenizer(mask=None))
    (message,) = check(tmp_path, data, model=NEW_MASKED)
    assert "no mask token" in message


def test_tokens_of_another_tokenizer_are_found_before_the_work(tmp_path: Path) -> None:
    pretrain(tmp_path / "first", write_tokens(tmp_path / "tokens"), steps=1)
    start = start_from(tmp_path / "first/model")
    same = write_tokens(tmp_path / "same", using=tokenizer().with_chat_template("{{ messages }}"))
    assert check(tmp_path, same, start, model="base") == []
    other = write_tokens(tmp_path / "other", using=tokenizer(mask=None))
    (message,) = check(tmp_path, other, start, model="base")
    assert "another tokenizer" in message


def test_damaged_tokens_are_found_before_the_work(tmp_path: Path) -> None:
    data = write_tokens(tmp_path / "tokens")
    (data.path / "train/00000.bin").write_bytes(b"")
    (message,) = check(tmp_path, data)
    assert "00000.bin" in message


def test_what_is_not_there_yet_is_not_checked(tmp_path: Path) -> None:
    config = PretrainConfig.model_validate({"data": "tokens", "model": "base"})
    assert stage.check(config, Context("p", 1, tmp_path, {})) == []
    assert stage.check(config, Context("p", 1, tmp_path, {"data": write_tokens(tmp_path / "tokens")})) == []
