"""What is found wrong before any work, by the facts of models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmkit.config.base import Facts
from llmkit.data import stage
from llmkit.data.config import DataConfig
from llmkit.store.stage import Context, ResolvedInput

SOURCES = [{"kind": "text", "files": ["a.txt"]}]
GPT = Facts("model", {"head": "causal-lm", "context": 64})
CLASSIFIER = Facts("model", {"head": "classification", "context": 64, "labels": ["bad", "good"]})
SCORER = Facts("model", {"head": "reward", "context": 64, "labels": []})
LATER = Facts("model", {"head": "classification"})


def config(**cleaning: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": SOURCES, "cleaning": cleaning})


def problems(model: Facts, **cleaning: Any) -> dict[str, str]:
    """Messages by key, `cleaning` left off."""
    (name,) = cleaning
    made = config(**cleaning)
    facts = {needed.key: model for needed in made.inputs() if needed.key == f"cleaning.{name}.model"}
    found = list(made.check(facts))
    return {finding.key.removeprefix(f"cleaning.{name}."): finding.message for finding in found}


@pytest.mark.parametrize(
    ("model", "cleaning", "key", "message"),
    [
        (CLASSIFIER, {"perplexity": {"model": "m"}}, "model", "`m` has a classification head"),
        (GPT, {"perplexity": {"model": "m", "context": 65}}, "context", "longer than the context of `m`, 64"),
        (GPT, {"perplexity": {"ngram": {"train_on": ["t"]}, "context": 9}}, "context", "belongs to `model`"),
        (GPT, {"classifier": {"model": "m"}}, "model", "`m` has a causal-lm head"),
        (CLASSIFIER, {"classifier": {"model": "m", "label": "god"}}, "label", "`m` has no class `god`"),
        (CLASSIFIER, {"classifier": {"model": "m", "keep": ["good", "x"]}}, "keep.1", "no class `x`"),
        (CLASSIFIER, {"classifier": {"model": "m", "min_score": 1.0}}, "min_score", "no score"),
        (CLASSIFIER, {"classifier": {"model": "m", "max_length": 99}}, "max_length", "64 tokens"),
        (SCORER, {"classifier": {"model": "m", "keep": ["good"]}}, "keep", "knows no classes"),
        (SCORER, {"toxicity": {"model": "m", "label": "bad"}}, "model", "`m` has a reward head"),
        (CLASSIFIER, {"toxicity": {"model": "m", "label": "toxic"}}, "label", "no class `toxic`"),
        (CLASSIFIER, {"toxicity": {"lexicon": "l", "max_probability": 0.2}}, "max_probability", "no `model`"),
        (CLASSIFIER, {"toxicity": {"model": "m", "label": "bad", "max_share": 0.2}}, "max_share", "no `lexicon`"),
    ],
)
def test_what_does_not_fit_is_found_with_its_key(
    model: Facts, cleaning: Mapping[str, Any], key: str, message: str
) -> None:
    found = problems(model, **cleaning)
    assert list(found) == [key]
    assert message in found[key]


@pytest.mark.parametrize(
    ("model", "cleaning"),
    [
        (GPT, {"perplexity": {"model": "m", "context": 64, "max_perplexity": 9.0}}),
        (GPT, {"perplexity": {"ngram": {"train_on": ["t"]}}}),
        (CLASSIFIER, {"classifier": {"model": "m", "label": "good", "keep": ["good"], "min_probability": 0.5}}),
        (SCORER, {"classifier": {"model": "m", "min_score": 2.5}}),
        (CLASSIFIER, {"toxicity": {"model": "m", "label": "bad", "lexicon": "l", "max_share": 0.0}}),
        # What is not known yet is looked at again when it is there.
        (LATER, {"classifier": {"model": "m", "label": "anything"}}),
        (Facts("unknown"), {"classifier": {"model": "m", "label": "anything", "min_score": 2.5}}),
    ],
)
def test_what_fits_or_may_fit_passes(model: Facts, cleaning: Mapping[str, Any]) -> None:
    assert problems(model, **cleaning) == {}


@pytest.mark.parametrize(
    ("cleaning", "message"),
    [
        ({"perplexity": {}}, "one of `ngram` and `model`"),
        ({"perplexity": {"model": "m", "ngram": {"train_on": ["t"]}}}, "one of `ngram` and `model`"),
        ({"perplexity": {"model": "m", "min_perplexity": 9.0, "max_perplexity": 2.0}}, "min_perplexity is above"),
        ({"classifier": {"model": "m", "min_probability": 0.9, "max_probability": 0.2}}, "min_probability is above"),
        ({"toxicity": {}}, "`lexicon` or a `model`"),
        ({"toxicity": {"model": "m"}}, "`model` and `label` go together"),
    ],
)
def test_settings_that_mean_nothing_are_refused(cleaning: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**cleaning)


def test_inputs_are_named_where_they_stand() -> None:
    made = config(
        perplexity={"ngram": {"train_on": ["a", "b"]}},
        classifier={"model": "c"},
        toxicity={"lexicon": "l", "model": "t", "label": "x"},
    )
    assert [(needed.key, needed.value, needed.kinds) for needed in made.inputs()][1:] == [
        ("cleaning.perplexity.ngram.train_on.0", "a", ("documents", "file")),
        ("cleaning.perplexity.ngram.train_on.1", "b", ("documents", "file")),
        ("cleaning.classifier.model", "c", ("model",)),
        ("cleaning.toxicity.lexicon", "l", ("file",)),
        ("cleaning.toxicity.model", "t", ("model",)),
    ]


def test_inputs_that_are_there_are_looked_into_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "list.txt").write_text("word\tx\n")
    made = DataConfig.model_validate(
        {
            "sources": [{"kind": "text", "files": [str(tmp_path / "a.txt")]}],
            "cleaning": {
                "classifier": {"model": "m", "label": "fine"},
                "toxicity": {"lexicon": str(tmp_path / "list.txt")},
            },
        }
    )
    inputs = {
        "cleaning.classifier.model": ResolvedInput("", "m", tmp_path, "d", CLASSIFIER),
        "cleaning.toxicity.lexicon": ResolvedInput("", "l", tmp_path / "list.txt", "d", Facts("file")),
    }
    findings = stage.check(made, Context("corpus", 1, tmp_path, inputs))
    assert [finding.key for finding in findings] == ["cleaning.classifier.label", "cleaning.toxicity.lexicon"]
    assert "list.txt:1: `x` is no weight" in findings[1].message
