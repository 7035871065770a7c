"""What the settings refuse and derive before any file is opened."""

from __future__ import annotations

import subprocess
import sys

import pytest
from finetune_samples import settings

from llmkit.config.base import Facts
from llmkit.finetune.config import FinetuneConfig

LLAMA = {
    "family": "llama", "head": "causal-lm", "causal": True, "context": 128, "vocab_size": 300, "chat_template": True,
}  # fmt: skip
BERT = {"family": "bert", "head": "masked-lm", "causal": False, "context": 64, "chat_template": False}
TALKS = {"format": "conversations", "splits": ["train", "validation"]}
LABELS = {"format": "labels", "labels": ["a", "b"], "splits": ["train"]}


def check(values, model=None, data=None, kind="examples"):
    inputs = {"model": Facts("model", model or LLAMA), "data": Facts(kind, TALKS if data is None else data)}
    return [(finding.key, finding.message) for finding in settings(**values).check(inputs)]


def test_what_fits():
    assert check({}) == []
    assert check({"max_length": 128, "epochs": 0.5}) == []
    assert check({"task": "classification"}, BERT, LABELS) == []
    assert check({"task": "classification"}, LLAMA, LABELS) == []
    assert check({"chat_template": "chatml"}, {**LLAMA, "chat_template": False}) == []
    assert check({"task": "classification", "text_column": "sentence"}, BERT, {}, "file") == []
    assert list(settings().check({"model": Facts("unknown"), "data": Facts("unknown")})) == []


@pytest.mark.parametrize(
    ("values", "model", "data", "key", "message"),
    [
        ({"steps": 5, "epochs": 1.0}, LLAMA, TALKS, "epochs", "both say how long"),
        ({"max_length": 129}, LLAMA, TALKS, "max_length", "longer than the model's context of 128"),
        ({}, BERT, TALKS, "model", "has a masked-lm head, and only a causal language model"),
        ({}, {**LLAMA, "head": "reward"}, TALKS, "model", "has a reward head"),
        ({}, {**LLAMA, "chat_template": False}, TALKS, "model", "has no chat template"),
        ({}, LLAMA, LABELS, "data", "holds labels, and the task chat learns from conversations"),
        ({"task": "classification"}, BERT, TALKS, "data", "holds conversations, and the task classification"),
        ({"task": "classification"}, BERT, {**LABELS, "labels": ["a"]}, "data", "has 1 label"),
        ({}, LLAMA, {**TALKS, "splits": ["test"]}, "data", "has no training split"),
        ({"chat_template": "chatmul"}, LLAMA, TALKS, "chat_template", "is no chat template"),
        ({"text_column": "t"}, LLAMA, TALKS, "text_column", "only classification has columns"),
        ({"task": "classification", "label_column": "l"}, BERT, LABELS, "label_column", "have fixed columns"),
        ({"task": "classification", "chat_template": "chatml"}, BERT, LABELS, "chat_template", "only the task chat"),
        ({"micro_batch_size": 5}, LLAMA, TALKS, "micro_batch_size", "does not divide"),
        ({"steps": 10, "schedule": {"warmup_steps": 11}}, LLAMA, TALKS, "schedule.warmup_steps", "longer than the tr"),
    ],
)
def test_what_does_not(values, model, data, key, message):
    ((found, text),) = check(values, model, data)
    assert found == key
    assert message in text


def test_facts_follow_the_task():
    inputs = {"model": Facts("model", LLAMA), "data": Facts("examples", TALKS)}
    assert settings().facts(inputs) == Facts("model", {**LLAMA, "labels": []})
    inputs = {"model": Facts("model", BERT), "data": Facts("examples", LABELS)}
    facts = settings(task="classification").facts(inputs)
    assert facts == Facts("model", {**BERT, "head": "classification", "labels": ["a", "b"]})
    known = {"model": Facts("model", {**BERT, "head": "classification", "labels": ["z"]}), "data": Facts("file")}
    assert settings(task="classification").facts(known).get("labels") is None


def test_steps():
    assert settings(steps=7).steps_for(100) == 7
    assert settings(epochs=2.0).steps_for(100) == 200
    assert settings(epochs=0.1).steps_for(3) == 1
    assert settings(epochs=0.3).steps_for(10) == 3
    assert settings().steps_for(10) == 30


def test_a_written_out_config_means_the_same():
    config = settings(epochs=2.0, optimizer={"lr": 0.5})
    assert config.optimizer.weight_decay == 0.01
    again = FinetuneConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    assert again.steps_for(10) == 20


def test_settings_load_without_torch():
    imports = "import sys, llmkit.finetune.config, llmkit.tokenizer.config"
    script = f"{imports}; print({{'torch', 'numpy', 'jinja2', 'tokenizers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
