from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from llmkit.config.base import Facts, Finding
from llmkit.eval.config import EvalConfig

GPT = Facts("model", {"head": "causal-lm", "context": 64, "chat_template": True})
BERT = Facts("model", {"head": "masked-lm", "context": 32, "chat_template": False})
CLASSIFIER = Facts("model", {"head": "classification", "labels": ["a", "b"], "context": 32})
REWARD = Facts("model", {"head": "reward", "context": 64, "chat_template": True})
DOCUMENTS = Facts("documents", {"splits": ["train", "test"]})
CHAT = Facts("examples", {"format": "conversations", "splits": ["train", "test"]})
LABELS = Facts("examples", {"format": "labels", "splits": ["train", "test"], "labels": ["a", "b", "c"]})
PAIRS = Facts("examples", {"format": "preferences"})
KNOWN = {
    "gpt": GPT, "bert": BERT, "classifier": CLASSIFIER, "reward": REWARD, "documents": DOCUMENTS, "chat": CHAT,
    "labels": LABELS, "pairs": PAIRS, "questions.jsonl": Facts("file"),
    "raw": Facts("model", {"head": "causal-lm", "context": 64, "chat_template": False}),
}  # fmt: skip


def config(*tasks: dict[str, Any], models: list[str] | None = None, **more: Any) -> EvalConfig:
    return EvalConfig.model_validate({"models": models or ["gpt", "bert"], "tasks": list(tasks), **more})


def findings(found: EvalConfig) -> list[Finding]:
    return list(found.check({needed.key: KNOWN[needed.value] for needed in found.inputs()}))


def test_inputs_are_models_data_and_reward_models_in_order() -> None:
    found = config(
        {"kind": "perplexity", "data": "documents"},
        {"kind": "generate", "data": "chat", "metrics": ["reward"], "reward_model": "reward", "max_new_tokens": 9},
        {"kind": "choice", "data": "questions.jsonl"},
    )
    assert [(needed.key, needed.value, needed.kinds) for needed in found.inputs()] == [
        ("models.0", "gpt", ("model",)),
        ("models.1", "bert", ("model",)),
        ("tasks.0.data", "documents", ("documents", "tokens", "file")),
        ("tasks.1.data", "chat", ("examples", "file")),
        ("tasks.1.reward_model", "reward", ("model",)),
        ("tasks.2.data", "questions.jsonl", ("file",)),
    ]
    assert found.facts({}) == Facts("results")
    assert findings(found) == []


@pytest.mark.parametrize(
    ("task", "models", "key", "message"),
    [
        ({"kind": "perplexity", "data": "documents", "models": ["bert"]}, None, "models.0", "masked-lm head"),
        ({"kind": "perplexity", "data": "documents", "models": ["gtp"]}, None, "models.0", "not among the models"),
        ({"kind": "perplexity", "data": "documents", "split": "validation"}, None, "split", "no validation split"),
        ({"kind": "perplexity", "data": "documents", "context": 65}, None, "context", "longer than that of `gpt`, 64"),
        ({"kind": "perplexity", "data": "documents", "stride": 65}, None, "stride", "longer than the context"),
        ({"kind": "masked", "data": "documents", "context": 40}, None, "context", "longer than that of `bert`, 32"),
        ({"kind": "preferences", "data": "pairs"}, None, "kind", "none of the models"),
        ({"kind": "generate", "data": "labels"}, None, "data", "conversations are wanted"),
        ({"kind": "generate", "data": "chat"}, ["raw"], "models", "no chat template"),
        ({"kind": "generate", "data": "chat", "max_new_tokens": 64}, None, "max_new_tokens", "no room for a prompt"),
        (
            {"kind": "generate", "data": "chat", "metrics": ["reward"], "reward_model": "gpt", "max_new_tokens": 9},
            None,
            "reward_model",
            "has a causal-lm head",
        ),
        ({"kind": "classification", "data": "labels"}, ["classifier"], "data", "does not know: c"),
        ({"kind": "classification", "data": "chat"}, ["classifier"], "data", "labels are wanted"),
    ],
)
def test_what_cannot_work_is_found(task: dict[str, Any], models: list[str] | None, key: str, message: str) -> None:
    task = {"max_new_tokens": 8, **task} if task["kind"] == "generate" else task
    [finding] = findings(config(task, models=models))
    assert finding.key == f"tasks.0.{key}"
    assert message in finding.message
    assert finding.severity == "error"


def test_a_misspelt_model_of_a_task_gets_the_nearest_name() -> None:
    [finding] = findings(config({"kind": "perplexity", "data": "documents", "models": ["gtp"]}))
    assert finding.hint == "Did you mean `gpt`?"


def test_what_is_not_known_is_no_finding() -> None:
    found = config({"kind": "generate", "data": "chat"}, {"kind": "perplexity", "data": "documents", "context": 9999})
    assert list(found.check({needed.key: Facts("unknown") for needed in found.inputs()})) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ["a", "a"], "tasks": [{"kind": "perplexity", "data": "x"}]}, "two models are called `a`"),
        ({"models": ["a"], "tasks": [{"kind": "perplexity", "data": "x"}] * 2}, "give tasks of one kind a `name`"),
        ({"models": ["a"], "tasks": []}, "at least 1 item"),
        ({"models": [], "tasks": [{"kind": "perplexity", "data": "x"}]}, "at least 1 item"),
        ({"models": ["a"], "tasks": [{"kind": "perplexity"}]}, "Field required"),
        ({"models": ["a"], "tasks": [{"kind": "perplexty", "data": "x"}]}, "expected tags"),
        ({"models": ["a"], "tasks": ["perplexity"]}, "valid dictionary"),
        ({"models": ["a"], "tasks": [{"kind": "perplexity", "data": "x", "stride": 9, "context": 8}]}, "stride longer"),
        ({"models": ["a"], "tasks": [{"kind": "generate", "data": "x", "metrics": ["reward"]}]}, "needs a `reward_mo"),
        ({"models": ["a"], "tasks": [{"kind": "generate", "data": "x", "reward_model": "r"}]}, "metric `reward` alone"),
        ({"models": ["a"], "tasks": [{"kind": "generate", "data": "x", "metrics": ["bleu"] * 2}]}, "stands twice"),
        ({"models": ["a"], "tasks": [{"kind": "choice", "data": "x", "name": "a/b"}]}, "should match pattern"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        EvalConfig.model_validate(settings)
    assert message in str(error.value)


def test_settings_load_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'datasets', 'transformers', 'pyarrow', 'sacrebleu'}"
    program = f"import sys, llmkit.eval.config; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_schema_describes_every_key() -> None:
    schema = EvalConfig.model_json_schema()
    for name, definition in schema["$defs"].items():
        for key, value in definition.get("properties", {}).items():
            assert value.get("description"), f"{name}.{key}"
