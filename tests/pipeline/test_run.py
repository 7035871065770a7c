"""The pipeline: what runs, what is skipped, what goes on, with stages made for the test."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from llmkit.config.base import Facts, Finding, Input, StageConfig
from llmkit.config.experiment import StageKind
from llmkit.errors import ArtifactError, ConfigError, LLMKitError
from llmkit.pipeline.run import Pipeline, load_experiment
from llmkit.store.artifact import open_artifact
from llmkit.store.stage import Context, Outcome


class TextConfig(StageConfig):
    """Writes a text, after those of its inputs."""

    kind: ClassVar[str] = "text"
    without_effect: ClassVar[frozenset[str]] = frozenset({"color"})
    stage: Literal["text"] = "text"
    say: str = ""
    """What to write."""
    after: list[str] = []
    """What comes before it."""
    color: str = "red"
    """Without effect."""
    stop: bool = False
    """Whether to stop half-way once."""
    wrong: bool = False
    """Whether the deep check finds something."""

    def inputs(self) -> list[Input]:
        return [Input(f"after.{index}", value, ("text", "file")) for index, value in enumerate(self.after)]

    def facts(self, inputs: Mapping[str, Facts]) -> Facts:
        return Facts("text")


def check(config: TextConfig, context: Context) -> list[Finding]:
    return [Finding("it is wrong.", key="wrong")] if config.wrong else []


def run(config: TextConfig, context: Context) -> Outcome:
    texts = []
    for found in context.inputs.values():
        texts.append((found.path / "out.txt" if found.artifact else found.path).read_text())
    half = context.directory / "half"
    if config.stop and not half.exists():
        half.write_text("x")
        raise KeyboardInterrupt
    (context.directory / "out.txt").write_text("".join(texts) + config.say)
    (context.directory / "log").write_text(f"went on: {half.exists()}")
    return Outcome(["out.txt"], Facts("text"), {"seed": context.seed})


KINDS = {"text": StageKind("text", "text", f"{__name__}:TextConfig", __name__, 1)}
CHAIN = """
run: r
stages:
  a: {stage: text, say: a}
  b: {stage: text, say: b, after: [a]}
  c: {stage: text, say: c, after: [a]}
  d: {stage: text, say: d, after: [b, c]}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def pipeline(text: str = CHAIN, overrides: tuple[str, ...] = ()) -> Pipeline:
    Path("f.yaml").write_text(text)
    return Pipeline(load_experiment("f.yaml", overrides, KINDS))


def ran(states: list[Any]) -> dict[str, str]:
    return {state.name: state.state for state in states}


def out(name: str) -> str:
    return (open_artifact(Path("runs/r") / name).path / "out.txt").read_text()


def test_everything_runs_once_in_order_and_then_nothing() -> None:
    assert list(ran(pipeline().run())) == ["a", "b", "c", "d"]
    assert out("d") == "abacd"
    assert set(ran(pipeline().run()).values()) == {"up to date"}
    assert Path("runs/r/run.yaml").is_file()


def test_a_changed_key_reruns_only_what_depends_on_it() -> None:
    pipeline().run()
    states = ran(pipeline(overrides=("stages.b.say=B",)).run())
    assert states == {"a": "up to date", "b": "out of date", "c": "up to date", "d": "out of date"}
    assert out("d") == "aBacd"


def test_a_key_without_effect_reruns_nothing() -> None:
    pipeline().run()
    assert set(ran(pipeline(overrides=("stages.a.color=blue",)).run()).values()) == {"up to date"}


def test_equal_content_made_anew_leaves_later_stages_up_to_date() -> None:
    pipeline().run()
    # The override changes the settings' digest of `a`, and not a byte of what it writes.
    states = ran(pipeline(overrides=("stages.a.stop=false", "stages.a.seed=7")).run())
    assert states == {"a": "out of date", "b": "up to date", "c": "up to date", "d": "up to date"}


def test_a_changed_file_outside_reruns_its_reader() -> None:
    Path("in.txt").write_text("1")
    text = "run: r\nstages: {a: {stage: text, say: x, after: [in.txt]}}\n"
    pipeline(text).run()
    assert ran(pipeline(text).run()) == {"a": "up to date"}
    Path("in.txt").write_text("2")
    assert ran(pipeline(text).run()) == {"a": "out of date"}
    assert out("a") == "2x"


def test_interrupted_work_goes_on_where_it_was() -> None:
    stopping = ("stages.b.stop=true",)
    with pytest.raises(KeyboardInterrupt):
        pipeline(overrides=stopping).run()
    assert {name: state.state for name, state in pipeline(overrides=stopping).states().items()} == {
        "a": "up to date", "b": "interrupted", "c": "missing", "d": "waiting",
    }  # fmt: skip
    pipeline(overrides=stopping).run()
    assert out("d") == "abacd"
    assert (Path("runs/r/b") / "log").read_text() == "went on: True"


def test_one_stage_runs_with_what_it_needs_or_refuses_to() -> None:
    with pytest.raises(ArtifactError, match="the stage `a` is missing, and b needs it"):
        pipeline().run(["b"], with_dependencies=False)
    assert list(ran(pipeline().run(["b"]))) == ["a", "b"]
    assert not Path("runs/r/c").exists()


@pytest.mark.parametrize("name", ["out.txt", "log"])
def test_damaged_inputs_are_refused_before_the_work(name: str) -> None:
    pipeline().run()
    file = Path("runs/r/a") / name
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    with pytest.raises(ArtifactError, match=f"`{name}` has other bytes"):
        pipeline(overrides=("stages.b.say=B",)).run()


def test_a_missing_file_of_a_finished_stage_makes_it_run_again() -> None:
    pipeline().run()
    (Path("runs/r/d") / "out.txt").unlink()
    assert ran(pipeline().run())["d"] == "out of date"
    assert out("d") == "abacd"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.d.after=[bb]", "neither a stage of this config nor a file or folder"),
        ("stages.d.after=[x/y.txt]", "there is no file or folder `x/y.txt`"),
    ],
)
def test_inputs_that_are_not_there_are_found_before_anything_runs(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pipeline(overrides=(override,)).run()
    assert not Path("runs/r/a").exists()


def test_deep_findings_stop_the_stage_and_name_the_key() -> None:
    with pytest.raises(ConfigError, match="it is wrong") as caught:
        pipeline(overrides=("stages.c.wrong=true",)).run()
    assert caught.value.where == "--set stages.c.wrong=true: stages.c.wrong"
    assert [
        (name, finding.message) for name, finding in pipeline(overrides=("stages.c.wrong=true",)).findings(deep=True)
    ] == [("c", "it is wrong.")]


def test_seeds_differ_by_stage_and_follow_the_experiment() -> None:
    pipeline().run()
    seeds = [open_artifact(Path("runs/r") / name).manifest.summary["seed"] for name in "abcd"]
    assert len(set(seeds)) == 4
    pipeline(overrides=("seed=2", "run=s")).run()
    assert open_artifact(Path("runs/s/a")).manifest.summary["seed"] not in seeds
    pipeline(overrides=("stages.a.seed=5", "run=t")).run()
    assert open_artifact(Path("runs/t/a")).manifest.summary["seed"] == 5


def test_another_run_may_be_an_input_by_its_path() -> None:
    pipeline().run()
    text = "run: other\nstages: {e: {stage: text, say: e, after: [runs/r/d]}}\n"
    pipeline(text).run()
    assert (Path("runs/other/e") / "out.txt").read_text() == "abacde"


def test_an_error_is_one_that_the_user_can_mend() -> None:
    with pytest.raises(LLMKitError) as caught:
        load_experiment("absent.yaml", (), KINDS)
    assert caught.value.exit_code == 2
