from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from llmkit.config.base import Facts, Finding
from llmkit.pretrain.config import PretrainConfig
from llmkit.pretrain.plan import plan
from llmkit.train.memory.machines import named_machine
from llmkit.train.schedule import learning_rate

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


def test_a_warmup_in_tokens_under_phases() -> None:
    # Two steps of 2 x 8 tokens, then 4 x 16 each: 16, 32, 96, 160, ... of 544 in all.
    settings = {
        "steps": 10, "batch_size": 4, "sequence_length": 16, "micro_batch_size": 2,
        "phases": [{"steps": 2, "batch_size": 2, "sequence_length": 8}],
        "optimizer": {"lr": 1.0}, "schedule": {"name": "linear", "warmup_tokens": 160, "final_fraction": 0.0},
    }  # fmt: skip
    made = config(**settings)
    assert list(made.check({"data": TOKENS})) == []
    seen = [16, 32, 96, 160, 224, 544]
    expected = [16 / 160, 32 / 160, 96 / 160, 1.0, 1 - 64 / 384, 0.0]
    assert [made.clock(step).done for step in (0, 1, 2, 3, 4, 9)] == seen
    assert [learning_rate(step, made) for step in (0, 1, 2, 3, 4, 9)] == pytest.approx(expected)
    too_long = config(**{**settings, "schedule": {"warmup_tokens": 600}})
    assert [finding.key for finding in too_long.check({"data": TOKENS})] == ["schedule.warmup_tokens"]


def test_phases_are_checked() -> None:
    def keys(**settings: Any) -> list[str]:
        return [finding.key for finding in config(**{"steps": 100, **settings}).check({"data": TOKENS})]

    assert keys(phases=[{"tokens": 1000, "batch_size": 8}]) == []
    assert keys(phases=[{"steps": 100}]) == ["phases"]
    assert keys(phases=[{"steps": 5, "batch_size": 7}], micro_batch_size=8) == ["phases.0.batch_size"]
    assert keys(phases=[{"steps": 5, "sequence_length": 64}], sequence_length=32) == ["phases.0.sequence_length"]
    assert keys(phases=[{"steps": 5, "batch_size": 32}]) == ["phases"]
    with pytest.raises(ValidationError, match="give one of them"):
        config(phases=[{"steps": 5, "tokens": 5}])


def test_sources_are_checked() -> None:
    def findings_of(*sources: dict[str, Any]) -> list[str]:
        made = config(data=list(sources))
        return [finding.key for finding in made.check(dict.fromkeys(made.sources, TOKENS))]

    assert findings_of({"data": "a", "weight": 0.7}, {"data": "b", "weight": [[0, 0.1], [1, 0.5]]}) == []
    assert findings_of({"data": "a"}, {"data": "a"}) == ["data.0.data"]
    assert findings_of({"data": "a", "weight": 0.0}, {"data": "b", "weight": [[0, 1.0], [0.9, 0.0]]}) == ["data"]
    assert [needed.key for needed in config(data=[{"data": "a"}, {"data": "b"}]).inputs()] == [
        "data.0.data",
        "data.1.data",
    ]
    for points in ([[0, 0.1, 3]], [[0.5, 1], [0.2, 1]], [[0, 1], [2, 1]]):
        with pytest.raises(ValidationError):
            config(data=[{"data": "a", "weight": points}])
