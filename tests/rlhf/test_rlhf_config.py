"""What the settings refuse before anything is opened."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError
from rlhf_worlds import settings

from llmkit.config.base import Facts
from llmkit.config.problems import findings_of
from llmkit.rlhf.config import RLHFConfig

MODEL = {"head": "causal-lm", "context": 64, "vocab_size": 300, "chat_template": True, "family": "llama"}
JUDGE = {**MODEL, "head": "reward"}


def check(config: RLHFConfig, **facts: Any) -> list[tuple[str, str]]:
    data = "conversations" if config.online else "preferences"
    inputs = {
        "model": Facts("model", {**MODEL, **facts.get("model", {})}),
        "data": Facts("examples", {"format": facts.get("format", data)}),
        "reward_model": Facts("model", {**JUDGE, **facts.get("judge", {})}),
    }
    return [(finding.key, finding.message) for finding in config.check(inputs) if finding.severity == "error"]


@pytest.mark.parametrize(
    ("algorithm", "values"),
    [
        ("reward_model", {"bradley_terry": {"centering": 0.01}}),
        ("dpo", {"dpo": {"beta": 0.2}}),
        ("grpo", {"rewards": ["exact_match"], "rollout": {"max_new_tokens": 32, "max_prompt_length": 32}}),
        ("grpo", {"rewards": [{"name": "length", "maximum": 9, "weight": 0.5}], "reward_model": "rm"}),
        ("ppo", {"reward_model": "rm", "reward_model_weight": 0.5, "rollout": {"max_new_tokens": 8}}),
    ],
)
def test_valid(algorithm: str, values: dict[str, Any]) -> None:
    small = {} if algorithm in ("reward_model", "dpo") or "rollout" in values else {"rollout": {"max_new_tokens": 8}}
    assert check(settings(algorithm, **values, **small)) == []


ONLINE = {"rewards": ["exact_match"]}
ROOM = {**ONLINE, "rollout": {"max_new_tokens": 8}}


@pytest.mark.parametrize(
    ("algorithm", "values", "facts", "key", "message"),
    [
        ("dpo", {"grpo": {"group_size": 4}}, {}, "grpo", "belongs to the algorithm grpo"),
        ("dpo", ONLINE, {}, "rewards", "belongs to the algorithm ppo or grpo"),
        ("reward_model", {"dpo": {}}, {}, "dpo", "belongs to the algorithm dpo"),
        ("grpo", {**ROOM, "ppo": {}}, {}, "ppo", "belongs to the algorithm ppo"),
        ("grpo", {**ROOM, "max_length": 8}, {}, "max_length", "reward_model or dpo"),
        ("grpo", {"rollout": {"max_new_tokens": 8}}, {}, "rewards", "needs something that rewards"),
        ("grpo", {**ROOM, "reward_model_weight": 2.0}, {}, "reward_model_weight", "no `reward_model`"),
        ("grpo", {**ROOM, "batch_size": 12}, {}, "batch_size", "groups of 8 do not divide"),
        ("grpo", {**ROOM, "grpo": {"group_size": 5}}, {}, "grpo.group_size", "groups of 5 do not divide"),
        ("grpo", ONLINE, {}, "rollout", "64 new tokens leave no room"),
        ("ppo", {**ONLINE, "rollout": {"max_new_tokens": 40, "max_prompt_length": 25}}, {},
         "rollout.max_prompt_length", "do not fit the model's context of 64"),
        ("ppo", {**ONLINE, "rollout": {"max_new_tokens": 8, "unfinished_penalty": 2.0}}, {},
         "rollout.unfinished_penalty", "belongs to `unfinished: penalty`"),
        ("dpo", {"max_length": 65}, {}, "max_length", "beyond the model's context"),
        ("dpo", {"dpo": {"loss": "ipo", "label_smoothing": 0.1}}, {}, "dpo.label_smoothing", "ipo ignores it"),
        ("dpo", {}, {"model": {"head": "reward"}}, "model", "has a reward head"),
        ("grpo", ROOM, {"model": {"head": "masked-lm"}}, "model", "has a masked-lm head"),
        ("dpo", {}, {"model": {"chat_template": False}}, "model", "no chat template"),
        ("dpo", {}, {"format": "conversations"}, "data", "learns from preferences"),
        ("ppo", ROOM, {"format": "preferences"}, "data", "learns from conversations"),
        ("ppo", {**ROOM, "reward_model": "rm"}, {"judge": {"head": "causal-lm"}}, "reward_model", "gives no scores"),
        ("ppo", {**ROOM, "reward_model": "rm"}, {"judge": {"vocab_size": 9}}, "reward_model", "the same tokenizer"),
        ("ppo", {**ROOM, "reward_model": "rm"}, {"judge": {"context": 8}}, "reward_model", "do not fit the context"),
        ("dpo", {"batch_size": 8, "micro_batch_size": 3}, {}, "micro_batch_size", "does not divide"),
    ],
)  # fmt: skip
def test_refused(algorithm: str, values: dict[str, Any], facts: dict[str, Any], key: str, message: str) -> None:
    found = check(settings(algorithm, **values), **facts)
    assert [place for place, _ in found] == [key]
    assert message in found[0][1]


def test_unknown_facts_are_no_findings() -> None:
    config = settings("grpo", rewards=["contains"], reward_model="rm")
    assert list(config.check(dict.fromkeys(("model", "data", "reward_model"), Facts("unknown")))) == []


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [
        ({"algorithm": "grop"}, "'grop' is not one of", "Did you mean `grpo`?"),
        ({"grpo": {"groupsize": 4}}, "`groupsize` is not a known key", "Did you mean `group_size`?"),
        ({"rollout": {"temperature": 0}}, "out of range", None),
        ({"rewards": ["exact_mach"]}, "'exact_mach' is not one of", "Did you mean `exact_match`?"),
    ],
)
def test_misspelt(written: dict[str, Any], message: str, hint: str | None) -> None:
    values = {"stage": "rlhf", "algorithm": "grpo", "model": "m", "data": "d", **written}
    with pytest.raises(ValidationError) as caught:
        RLHFConfig.model_validate(values)
    (_, finding) = findings_of(caught.value, values, ())[0]
    assert message in finding.message
    assert finding.hint == hint


def test_facts_of_the_result() -> None:
    inputs = {"model": Facts("model", {**MODEL, "labels": ["a"]})}
    made = settings("reward_model").facts(inputs)
    assert (made.kind, made.get("head"), made.get("labels"), made.get("context")) == ("model", "reward", None, 64)
    assert settings("dpo").facts(inputs).get("head") == "causal-lm"


def test_inputs() -> None:
    assert [needed.key for needed in settings("dpo").inputs()] == ["model", "data"]
    keys = [needed.key for needed in settings("grpo", reward_model="rm").inputs()]
    assert keys == ["model", "data", "reward_model"]


def test_a_mapping_keeps_the_stage_defaults() -> None:
    config = settings("dpo", optimizer={"betas": [0.8, 0.9]})
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (1e-5, 0.0)


def test_schema_names_every_reward_function() -> None:
    schema = RLHFConfig.model_json_schema()
    items = schema["properties"]["rewards"]["items"]
    assert "exact_match" in items["anyOf"][0]["enum"]
    assert "format" in items["anyOf"][1]["discriminator"]["mapping"]


def test_settings_import_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "datasets", "transformers", "pyarrow")
    code = f"import sys, llmkit.rlhf.config; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
