from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, get_args

import pytest

from llmkit.config.experiment import StageKind, parse_experiment, static_findings
from llmkit.config.yaml import parse_yaml
from llmkit.data.examples_config import ChatTaskName, ExamplesConfig
from llmkit.errors import ConfigError

KINDS = {
    "examples": StageKind(
        "examples", "data", "llmkit.data.examples_config:ExamplesConfig", "llmkit.data.examples_stage", 1
    )
}


def parsed(source: str, rest: str = "") -> ExamplesConfig:
    return experiment(source, rest).stages["examples"]  # type: ignore[return-value]


def experiment(source: str, rest: str = "") -> Any:
    text = f"run: r\nstages:\n  examples:\n    source: {source}\n{rest}"
    return parse_experiment(parse_yaml(text, "a.yaml"), KINDS)


@pytest.mark.parametrize(
    ("source", "facts"),
    [
        ("{kind: python-docs, task: words}", {"format": "conversations"}),
        ("{kind: python-docs, task: mixture, tasks: {kind: 1, module: 2.5}}", {"format": "conversations"}),
        ("{kind: python-docs, task: preferences}", {"format": "preferences"}),
        ("{kind: files, files: [a.jsonl], format: alpaca}", {"format": "conversations"}),
        ("{kind: files, files: [a.jsonl], format: dialogues}", {"format": "preferences"}),
        ("{kind: files, files: [a.jsonl]}", {}),
        ("{kind: dataset, dataset: owner/name, format: labels}", {"format": "labels"}),
    ],
)
def test_what_is_known_before_anything_is_read(source: str, facts: dict[str, object]) -> None:
    found = parsed(source).facts({})
    assert found.kind == "examples"
    assert found.properties == {"splits": ["train", "validation", "test"], **facts}


def test_labels_of_a_classification_are_known_in_order() -> None:
    labels = parsed("{kind: python-docs, task: classify, labels: topics}").facts({}).get("labels")
    assert labels == sorted(labels) and "internet" in labels and len(labels) == 10


def test_splits_of_their_own_count_even_where_nothing_is_held_out() -> None:
    found = parsed("{kind: files, files: [a.csv], test: [b.csv]}", "    splits: {validation: 0, test: 0}\n")
    assert found.facts({}).get("splits") == ["train", "test"]
    assert parsed("{kind: python-docs, task: kind}", "    splits: {validation: 0}\n").split_names() == ["train", "test"]


def test_inputs_are_the_files_of_every_split() -> None:
    found = parsed('{kind: files, files: [a.csv, "b/*.csv"], validation: [c.csv]}').inputs()
    assert [(one.key, one.value, one.kinds) for one in found] == [
        ("source.validation.0", "c.csv", ("file",)),
        ("source.files.0", "a.csv", ("file",)),
        ("source.files.1", "b/*.csv", ("file",)),
    ]
    assert [one.value for one in parsed("{kind: dataset, dataset: ./here}").inputs()] == ["./here"]
    assert parsed("{kind: dataset, dataset: owner/name}").inputs() == []
    assert parsed("{kind: python-docs, task: kind}").inputs() == []


def test_the_python_is_part_of_what_the_examples_depend_on() -> None:
    assert parsed("{kind: python-docs, task: kind}").environment()["python"].startswith(f"3.{sys.version_info.minor}")
    assert parsed("{kind: files, files: [a.csv]}").environment() == {}


@pytest.mark.parametrize(
    ("source", "place", "message"),
    [
        ("{kind: python-docs, task: mdule}", "examples.source", "Did you mean `module`?"),
        ("{kind: python-doc, task: module}", "examples.source", "Did you mean `python-docs`?"),
        ("{kind: python-docs}", "examples.source", "the key `task`, which says what this is, is missing"),
        ("{kind: python-docs, task: mixture, tasks: {}}", "examples.source.tasks", "out of range"),
        ("{kind: python-docs, task: mixture, tasks: {word: 1}}", "examples.source.tasks.word", "Did you mean `words`?"),
        ("{kind: python-docs, task: mixture, tasks: {words: 0}}", "examples.source.tasks.words", "out of range"),
        ("{kind: python-docs, task: kind, pairs: 2}", "examples.source.pairs", "not a known key"),
        ("{kind: files, files: []}", "examples.source.files", "out of range"),
        # The kind of this source is called as one of its keys.
        ("{kind: files, files: [a], colums: {}}", "examples.source.colums", "Did you mean `columns`?"),
        ("{kind: files, files: [a], columns: {txt: b}}", "examples.source.columns.txt", "Did you mean `text`?"),
        ("{kind: files, files: [a, 3]}", "examples.source.files.1", "3 is not a string"),
    ],
)
def test_mistakes_are_refused_at_their_place(source: str, place: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml:4") as caught:
        experiment(source)
    assert f"stages.{place}:" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("source", "rest", "message"),
    [
        ("{kind: python-docs, task: kind}", "    seed: 3\n", "do not depend on a seed"),
        ("{kind: dataset, dataset: owner/name}", "", "newest revision"),
    ],
)
def test_what_does_nothing_or_may_change_is_worth_a_warning(source: str, rest: str, message: str) -> None:
    ((_, finding),) = static_findings(experiment(source, rest), {})
    assert finding.severity == "warning" and message in finding.message


def test_settings_load_nothing_heavy() -> None:
    program = (
        "import sys, llmkit.data.examples_config as c\n"
        "c.ExamplesConfig(source={'kind': 'python-docs', 'task': 'classify'}).facts({})\n"
        "print(*{'torch', 'numpy', 'pyarrow', 'datasets', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_setting_is_explained_and_in_the_schema() -> None:
    schema = ExamplesConfig.model_json_schema()
    assert all(f'"{task}"' in json.dumps(schema) for task in get_args(ChatTaskName))
    for name, definition in schema["$defs"].items():
        for key, described in definition.get("properties", {}).items():
            assert described.get("description"), f"{name}.{key}"
