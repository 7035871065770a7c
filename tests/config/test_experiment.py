"""Experiments: messages with place and nearest name, dependency order, facts that travel along the chain."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import jsonschema
import pytest
from pydantic import Field

from llmkit.config.base import Config, Facts, Finding, Input, StageConfig
from llmkit.config.experiment import Experiment, StageKind, parse_experiment, static_findings
from llmkit.config.schema import experiment_schema
from llmkit.config.yaml import parse_yaml
from llmkit.errors import ConfigError


class Round(Config):
    """A round shape."""

    kind: Literal["round"]
    """Which shape."""
    radius: float = Field(default=1.0, gt=0)
    """Its radius."""


class Square(Config):
    """A square shape."""

    kind: Literal["square"]
    """Which shape."""
    side: int = Field(ge=1)
    """Its side."""


class MakeConfig(StageConfig):
    """Makes a thing."""

    kind: ClassVar[str] = "make"
    stage: Literal["make"] = "make"
    size: int = Field(default=3, ge=1, le=10)
    """How large."""
    mode: Literal["fast", "careful"] = "fast"
    """How it is made."""
    shapes: list[Annotated[Round | Square, Field(discriminator="kind")]] = []
    """Shapes."""

    def facts(self, inputs: Mapping[str, Facts]) -> Facts:
        return Facts("thing", {"size": self.size})


class JoinConfig(StageConfig):
    """Joins two things."""

    kind: ClassVar[str] = "join"
    stage: Literal["join"] = "join"
    left: str
    """A thing."""
    right: str
    """Another."""

    def inputs(self) -> list[Input]:
        return [Input("left", self.left, ("thing",)), Input("right", self.right, ("thing",))]

    def facts(self, inputs: Mapping[str, Facts]) -> Facts:
        sizes = [inputs[key].get("size") for key in ("left", "right")]
        return Facts("pair", {} if None in sizes else {"size": sum(sizes)})

    def check(self, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        left, right = inputs["left"].get("size"), inputs["right"].get("size")
        if left is not None and right is not None and left != right:
            yield Finding(f"a thing of {left} and one of {right} do not join.", key="right", hint="Make them equal.")


KINDS = {
    "make": StageKind("make", "make", f"{__name__}:MakeConfig", "none", 1),
    "join": StageKind("join", "join", f"{__name__}:JoinConfig", "none", 1),
}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def parse(text: str) -> Experiment:
    return parse_experiment(parse_yaml(text, "f.yaml"), KINDS)


GOOD = "run: r\nstages:\n  both: {stage: join, left: a, right: b}\n  a: {stage: make}\n  b: {stage: make}\n"


def test_stages_come_in_dependency_order_with_their_kinds() -> None:
    experiment = parse(GOOD)
    assert list(experiment.stages) == ["a", "b", "both"]
    assert experiment.dependencies("both") == ["a", "b"]
    assert experiment.kinds["both"].name == "join"


def test_a_name_that_is_a_kind_needs_no_stage_key() -> None:
    assert parse("run: r\nstages:\n  make:\n").kinds["make"].name == "make"


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("run: r\nstages:\n  make: {sise: 3}\n", "f.yaml:3: stages.make.sise", "not a known key. Did you mean `size`?"),
        ("run: r\nstages:\n  make:\n    size: '3'\n", "f.yaml:4: stages.make.size", "'3' is not a whole number"),
        ("run: r\nstages:\n  make:\n    size: 99\n", "f.yaml:4: stages.make.size", "99 is out of range"),
        ("run: r\nstages:\n  make:\n    size: 2.5\n", "f.yaml:4: stages.make.size", "2.5 is not a whole number"),
        ("run: r\nstages:\n  make:\n    mode: carefull\n", "f.yaml:4: stages.make.mode", "Did you mean `careful`?"),
        ("run: r\nstages:\n  maker: {}\n", "f.yaml:3: stages.maker", "Did you mean `make`?"),
        ("run: r\nstages:\n  x: {stage: mak}\n", "f.yaml:3: stages.x.stage", "Did you mean `make`?"),
        ("run: r\nstages:\n  join: {left: a}\n", "f.yaml:3: stages.join.right", "needed and not there"),
        ("run: r\nstages:\n  make: 5\n", "f.yaml:3: stages.make", "a mapping of keys"),
        ("run: r\nstagse: {}\n", "f.yaml:2: stagse", "Did you mean `stages`?"),
        ("run: r/x\nstages: {make: }\n", "f.yaml:1: run", "out of range"),
        ("stages: {make: }\n", "f.yaml:1: run", "needed and not there"),
        ("run: r\nstages: {}\n", "f.yaml:2: stages", "out of range"),
        (
            "run: r\nstages:\n  make:\n    shapes:\n      - {kind: sqare, side: 1}\n",
            "f.yaml:5: stages.make.shapes.0",
            "Did you mean `square`?",
        ),
        (
            "run: r\nstages:\n  make:\n    shapes:\n      - kind: square\n        side: x\n",
            "f.yaml:6: stages.make.shapes.0.side",
            "'x' is not a whole number",
        ),
        ("run: r\nstages:\n  make:\n    shapes:\n      - {side: 1}\n", "f.yaml:5: stages.make.shapes.0", "`kind`"),
        (
            "run: r\nstages:\n  join: {left: join, right: join}\n",
            "f.yaml:3: stages.join",
            "depends on itself: join -> join",
        ),
        (
            "run: r\nstages:\n  a: {stage: join, left: b, right: b}\n  b: {stage: join, left: a, right: a}\n",
            "f.yaml:3: stages.a",
            "in a circle: a -> b -> a",
        ),
    ],
)
def test_mistakes_are_placed_explained_and_given_the_nearest_name(text: str, where: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.where == where
    assert words in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("run: r\nstages:\n  make: {size: 0}\n  b: {stage: make, mode: x}\n")
    assert "stages.make.size" in str(caught.value)
    assert "stages.b.mode" in str(caught.value)


def test_facts_travel_along_the_chain_and_are_checked_before_anything_runs() -> None:
    experiment = parse(GOOD.replace("b: {stage: make}", "b: {stage: make, size: 4}"))
    ((name, finding),) = static_findings(experiment, {})
    assert (name, finding.key) == ("both", "right")
    assert "a thing of 3 and one of 4" in finding.message


def test_an_input_of_the_wrong_kind_is_found() -> None:
    text = GOOD + "  more: {stage: join, left: both, right: a}\n"
    ((name, finding),) = static_findings(parse(text), {})
    assert (name, finding.key) == ("more", "left")
    assert "gives pair, and thing is wanted" in finding.message


def test_the_schema_accepts_what_parses_and_refuses_what_does_not() -> None:
    schema = experiment_schema(KINDS)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = [
        GOOD,
        "run: r\nstages: {make: {size: 2}}\n",
        "run: r\nstages: {make: {shapes: [{kind: round, radius: 2}]}}\n",
    ]
    bad = [
        "run: r\nstages: {make: {sise: 2}}\n",
        "run: r\nstages: {other: {size: 2}}\n",
        "run: r\nstages: {x: {stage: join, left: a}}\n",
        "run: r\nstages: {make: {stage: join, left: a, right: a, size: 1}}\n",
        "run: r\nstages: {make: {size: 0}}\n",
    ]
    for text in good:
        assert not list(validator.iter_errors(parse_yaml(text, "f").data)), text
    for text in bad:
        assert list(validator.iter_errors(parse_yaml(text, "f").data)), text
    assert schema["$defs"]["MakeConfig"]["properties"]["size"]["description"] == "How large."
