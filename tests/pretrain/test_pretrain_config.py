from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from llmkit.config.base import Facts, Finding
from llmkit.pretrain.config import PretrainConfig
from llmkit.pretrain.plan import plan
from llmkit.train.machines import named_machine

LLAMA = {"family": "llama", "layers": 2, "width": 64, "heads": 2, "context": 128}
BERT = {"family": "bert", "layers": 2, "width": 64, "heads": 2, "context": 128}
TOKENS = Facts("tokens", {"vocab_size": 500, "splits": ["train", "validation"], "mask_token": True})
H100 = named_machine("h100")


def config(**values: Any) -> PretrainConfig:
    return PretrainConfig.model_validate({"data": "tokens", "model": LLAMA, **values})


def findings(tokens: Facts = TOKENS, start: Facts | None = None, **values: Any) -> list[Finding]:
    return list(config(**values).check({"data": tokens, **({} if start is None else {"model": start})}))


def tokens(**changes: Any) -> Facts:
    return Facts("tokens", {**TOKENS.properties, **changes})


@pytest.mark.parametrize("model", [LLAMA, BERT, {**BERT, "context": 64}])
def test_a_sound_config_has_nothing_wrong(model: dict[str, Any]) -> None:
    assert findings(model=model, sequence_length=64) == []
    assert findings(Facts("unknown"), model=model) == []


def test_a_model_to_start_from_is_an_input() -> None:
    assert [given.key for given in config().inputs()] == ["data"]
    assert [(given.key, given.value) for given in config(model="base").inputs()] == [
        ("data", "tokens"),
        ("model", "base"),
    ]


@pytest.mark.parametrize(
    ("values", "given", "key"),
    [
        ({"sequence_length": 129}, TOKENS, "sequence_length"),
        ({"objective": "masked"}, TOKENS, "objective"),
        ({"objective": "causal", "model": BERT}, TOKENS, "objective"),
        ({"model": BERT}, tokens(mask_token=False), "data"),
        ({"model": BERT, "mask": {"replace": 0.8, "random": 0.3}}, TOKENS, "mask"),
        ({"mask": {"probability": 0.2}}, TOKENS, "mask"),
        ({}, tokens(splits=["validation"]), "data"),
        ({"batch_size": 6, "micro_batch_size": 4}, TOKENS, "micro_batch_size"),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, Any], given: Facts, key: str) -> None:
    found = findings(given, **values)
    assert [finding.key for finding in found if finding.severity == "error"] == [key]


def test_a_missing_validation_split_is_a_warning() -> None:
    (found,) = findings(tokens(splits=["train"]))
    assert (found.key, found.severity) == ("data", "warning")


def test_a_start_is_checked_by_its_facts() -> None:
    start = {"family": "llama", "causal": True, "context": 64, "vocab_size": 400}
    found = findings(TOKENS, Facts("model", start), model="base", sequence_length=65)
    assert [finding.key for finding in found] == ["data", "sequence_length"]
    assert findings(TOKENS, Facts("model", {**start, "vocab_size": 500}), model="base") == []
    assert findings(TOKENS, Facts("unknown"), model="base") == []


@pytest.mark.parametrize(
    ("model", "place", "words"),
    [
        (5, ("model",), "a model is a mapping"),
        (None, ("model",), "a model is a mapping"),
        ({"family": "llama", "layers": 2}, ("model", "new", "width"), "required"),
        ({**LLAMA, "heads": 3}, ("model", "new", "heads"), "do not divide width"),
        ({**LLAMA, "familly": "llama"}, ("model", "new"), "familly"),
    ],
)
def test_errors_in_the_model_name_their_place(model: Any, place: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        config(model=model)
    (error,) = raised.value.errors()
    assert error["loc"][: len(place)] == place
    assert words in str(error)


def test_facts_of_the_result() -> None:
    facts = config().facts({"data": TOKENS})
    assert facts.kind == "model"
    assert {name: facts.get(name) for name in ("family", "head", "causal", "context", "vocab_size")} == {
        "family": "llama", "head": "causal-lm", "causal": True, "context": 128, "vocab_size": 500,
    }  # fmt: skip
    assert config(model=BERT).facts({"data": TOKENS}).get("head") == "masked-lm"
    unknown = config().facts({"data": Facts("unknown")})
    assert (unknown.get("context"), unknown.get("vocab_size"), unknown.get("parameters")) == (128, None, None)
    start = Facts("model", {"family": "bert", "head": "classification", "causal": False, "labels": ["a", "b"]})
    restarted = config(model="base").facts({"data": TOKENS, "model": start})
    assert (restarted.get("head"), restarted.get("labels")) == ("masked-lm", [])


def test_the_plan_counts_by_hand() -> None:
    values = {"family": "llama", "layers": 2, "width": 64, "heads": 2, "mlp_width": 160, "context": 128}
    found = plan(config(model=values, steps=10, batch_size=4, micro_batch_size=2), {"data": TOKENS}, H100)
    block = 4 * 64 * 64 + 3 * 64 * 160 + 2 * 64
    parameters = 500 * 64 + 2 * block + 64
    assert found.parameters == parameters
    assert found.tokens == 10 * 4 * 128
    multiplied = 500 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 160)
    assert found.flops == 10 * 4 * 128 * (6 * multiplied + 12 * 2 * 64 * 128)


def test_a_plan_without_a_tokenizer_says_what_is_missing() -> None:
    found = plan(config(steps=10, batch_size=4), {"data": Facts("unknown")}, H100)
    assert (found.parameters, found.tokens) == (None, 10 * 4 * 128)
    assert "tokenizer" in found.notes[0]


def test_settings_are_read_without_heavy_imports() -> None:
    code = "import sys, llmkit.pretrain.config; print([m for m in ('torch', 'numpy', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
