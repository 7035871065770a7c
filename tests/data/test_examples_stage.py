from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.base import Facts, Finding
from llmkit.data import examples_sources, examples_stage
from llmkit.data.examples import read_conversations, read_labels, read_preferences
from llmkit.data.examples_config import ExamplesConfig
from llmkit.data.inspect_examples import summarize_examples
from llmkit.data.python_objects import PythonObject
from llmkit.errors import DataError
from llmkit.store.artifact import Artifact, Manifest
from llmkit.store.splits import SPLITS, Splits, split_of
from llmkit.store.stage import Context, Outcome, ResolvedInput

SPLIT_FILES = [f"{split}.jsonl" for split in SPLITS]


@pytest.fixture(autouse=True)
def _known_objects(monkeypatch: pytest.MonkeyPatch, objects: list[PythonObject]) -> None:
    """The installed Python is looked through once for all tests."""
    monkeypatch.setattr(examples_sources, "python_objects", lambda: objects)


def context(directory: Path) -> Context:
    directory.mkdir(exist_ok=True)
    return Context("rows", 1, directory, where="a.yaml:3: stages.rows")


def settings(source: dict[str, Any], **other: Any) -> ExamplesConfig:
    return ExamplesConfig.model_validate({"source": source, **other})


def run(directory: Path, source: dict[str, Any], **other: Any) -> Outcome:
    config = settings(source, **other)
    assert examples_stage.check(config, context(directory)) == []
    return examples_stage.run(config, context(directory))


def opened(directory: Path, outcome: Outcome) -> ResolvedInput:
    manifest = Manifest("examples", "examples", "rows", "", "", {}, {}, outcome.facts.properties, {}, {}, ())
    return ResolvedInput("data", "rows", directory, "", outcome.facts, Artifact(directory, manifest))


def report(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    assert found["in"] == found["kept"] + sum(found["dropped"].values())
    assert found["kept"] == sum(split["rows"] for split in found["splits"].values())
    for task in found.get("tasks", {}).values():
        assert task["in"] == task["kept"] + sum(task["dropped"].values())
    return found


def test_a_mixture_of_questions(tmp_path: Path, objects: list[PythonObject]) -> None:
    tasks = {"module": 1.0, "words": 0.5}
    outcome = run(tmp_path, {"kind": "python-docs", "task": "mixture", "tasks": tasks}, splits={"test": 0.1})
    assert outcome.content == SPLIT_FILES
    assert outcome.facts == Facts("examples", {"format": "conversations", "splits": list(SPLITS)})
    found = report(tmp_path)
    assert found["in"] == 2 * len(objects)
    assert outcome.summary["train"] == found["splits"]["train"]["rows"]
    source = opened(tmp_path, outcome)
    named = {split: {row.metadata["object"] for row in read_conversations(source, split)} for split in SPLITS}
    assert not named["train"] & named["test"]
    assert not named["train"] & named["validation"]
    assert not named["validation"] & named["test"]
    assert 0.08 < len(named["test"]) / sum(map(len, named.values())) < 0.12
    counts = Counter(row.task for row in read_conversations(source, "train"))
    assert counts["words"] / counts["module"] == pytest.approx(0.5, abs=0.05)


def test_splits_by_module_are_those_of_documents_and_share_no_module(
    tmp_path: Path, objects: list[PythonObject]
) -> None:
    source = {"kind": "python-docs", "task": "describe", "split_by": "module"}
    outcome = run(tmp_path, source, splits={"validation": 0.1, "test": 0.1})
    modules = {item.name: item.module for item in objects}
    for split in SPLITS:
        rows = read_conversations(opened(tmp_path, outcome), split)
        assert rows
        for row in rows:
            assert split_of(modules[str(row.metadata["object"])], Splits(validation=0.1, test=0.1)) == split


def test_an_object_is_in_the_same_split_of_every_artifact(tmp_path: Path) -> None:
    splits: dict[str, dict[str, str]] = {}
    readers = {"words": read_conversations, "preferences": read_preferences, "classify": read_labels}
    for task, read in readers.items():
        outcome = run(tmp_path / task, {"kind": "python-docs", "task": task})
        source = opened(tmp_path / task, outcome)
        splits[task] = {str(row.metadata["object"]): split for split in SPLITS for row in read(source, split)}
    for task, other in (("words", "preferences"), ("preferences", "classify")):
        common = splits[task].keys() & splits[other].keys()
        assert len(common) > 300
        assert [name for name in common if splits[task][name] != splits[other][name]] == []


def test_chosen_answers_are_those_of_the_questions(tmp_path: Path) -> None:
    asked = run(tmp_path / "a", {"kind": "python-docs", "task": "words"})
    judged = run(tmp_path / "b", {"kind": "python-docs", "task": "preferences", "tasks": {"words": 1.0}})
    answers = {
        row.messages[0]["content"]: row.reference
        for split in SPLITS
        for row in read_conversations(opened(tmp_path / "a", asked), split)
    }
    for row in read_preferences(opened(tmp_path / "b", judged), "test"):
        assert answers[row.prompt[0]["content"]] == row.chosen != row.rejected


def test_labels_and_their_shares(tmp_path: Path) -> None:
    source = {"kind": "python-docs", "task": "classify", "per_label": 120}
    outcome = run(tmp_path, source, splits={"validation": 0.1, "test": 0.2})
    assert outcome.facts.get("labels") == settings(source).facts({}).get("labels")
    train = report(tmp_path)["splits"]["train"]
    rows = read_labels(opened(tmp_path, outcome), "train")
    counts = Counter(row.label for row in rows)
    assert train["labels"] == dict(sorted(counts.items()))
    assert train["majority"]["share"] == max(counts.values()) / len(rows) < 0.15


def test_equal_settings_give_equal_bytes_over_what_an_interrupted_attempt_left(tmp_path: Path) -> None:
    source = {"kind": "python-docs", "task": "preferences", "pairs": 2, "tasks": {"words": 1.0}}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "train.jsonl").write_text("half a li", encoding="utf-8")
    for name in ("a", "b"):
        run(tmp_path / name, source, limit=500)
    assert report(tmp_path / "a")["kept"] == 500
    for name in (*SPLIT_FILES, "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_rows_of_files_in_their_own_splits(tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    lines = [f"text {number},{'odd' if number % 2 else 'even'},{number // 10}" for number in range(200)]
    train.write_text("\n".join(["review,mark,page", *lines, "text 0,even,0", "text 900,odd,0"]), encoding="utf-8")
    test = tmp_path / "test.jsonl"
    rows = [{"review": f"text {number}", "mark": "odd", "page": 90} for number in (900, 901)]
    test.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {
        "kind": "files",
        "files": [str(train)],
        "test": [str(test)],
        "columns": {"text": "review", "label": "mark"},
        "split_key": "page",
    }
    outcome = run(tmp_path / "out", source, splits={"validation": 0.3, "test": 0.5})
    assert outcome.facts.properties == {"format": "labels", "splits": list(SPLITS), "labels": ["even", "odd"]}
    assert report(tmp_path / "out")["dropped"] == {"duplicate": 2}
    found = {split: read_labels(opened(tmp_path / "out", outcome), split) for split in SPLITS}
    assert [row.text for row in found["test"]] == ["text 900", "text 901"]
    pages = {split: {row.metadata["page"] for row in rows} for split, rows in found.items()}
    assert len(pages["train"] | pages["validation"]) == 20 and not pages["train"] & pages["validation"]
    assert 3 <= len(pages["validation"]) <= 10


def test_a_prompt_of_the_test_files_is_not_trained_on(tmp_path: Path) -> None:
    for name, answers in (("train", ("a", "b")), ("test", ("c",))):
        rows = [{"prompt": "same", "completion": answer} for answer in answers]
        rows.append({"prompt": f"only in {name}", "completion": "x"})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"kind": "files", "files": [str(tmp_path / "train.jsonl")], "test": [str(tmp_path / "test.jsonl")]}
    outcome = run(tmp_path / "out", source, splits={"validation": 0.0})
    assert report(tmp_path / "out")["dropped"] == {"held out for test": 2}
    (row,) = read_conversations(opened(tmp_path / "out", outcome), "train")
    assert row.messages[0]["content"] == "only in train"


def test_malformed_rows_stop_the_stage_or_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = ['{"prompt": "a", "completion": "b"}', '{"prompt": "a"}', "nonsense", '{"prompt": "c", "completion": "d"}']
    file.write_text("\n".join(lines), encoding="utf-8")
    source = {"kind": "files", "files": [str(file)]}
    (finding,) = examples_stage.check(settings(source), context(tmp_path / "out"))
    assert finding == Finding(f"{file}:2: `completion` has to be a text, and is absent or null.", key="source.files")
    with pytest.raises(DataError, match="`completion` has to be a text") as caught:
        examples_stage.run(settings(source), context(tmp_path / "out"))
    assert caught.value.where == f"{file}:2"
    run(tmp_path / "out", {**source, "malformed": "drop"}, splits={"validation": 0.0, "test": 0.0})
    found = report(tmp_path / "out")
    assert found["dropped"] == {"malformed": 2}
    quarantined = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert quarantined[0] == {"detail": str(caught.value), "text": '{"prompt": "a"}'}
    assert quarantined[1]["detail"].startswith(f"{file}:3: ")
    assert len(quarantined) == 2


@pytest.mark.parametrize(
    ("source", "key", "problem"),
    [
        ({"files": ["{}/none.jsonl"]}, "source.files", "holds no file of rows"),
        ({"files": ["{}/rows.jsonl"], "test": ["{}/none"]}, "source.test", "holds no file of rows"),
        ({"files": ["{}/rows.jsonl"], "format": "labels"}, "source.files", "`text` has to be a text"),
        ({"files": ["{}/rows.jsonl"], "split_key": "page"}, "source.files", "no `page`, which decides its split"),
        ({"files": ["{}/mixed"]}, "source.files", "one of labels, and the rows before it are conversations"),
    ],
)
def test_a_look_at_the_first_rows_tells_what_is_wrong(
    tmp_path: Path, source: dict[str, Any], key: str, problem: str
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    (tmp_path / "mixed" / "b.csv").write_text("text,label\na,b\n", encoding="utf-8")
    placed = {
        name: [path.format(tmp_path) for path in value] if isinstance(value, list) else value
        for name, value in source.items()
    }
    (finding,) = examples_stage.check(settings({"kind": "files", **placed}), context(tmp_path / "out"))
    assert finding.key == key
    assert problem in finding.message


def test_files_may_differ_in_format_and_not_in_kind(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n', encoding="utf-8")
    (tmp_path / "b.csv").write_text("prompt,completion\nc,d\n", encoding="utf-8")
    source = {"kind": "files", "files": [str(tmp_path)]}
    outcome = run(tmp_path / "out", source, splits={"validation": 0.0, "test": 0.0})
    rows = read_conversations(opened(tmp_path / "out", outcome), "train")
    assert [row.reference for row in rows] == ["b", "d"]


def test_a_folder_is_read_as_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, count in (("train", 30), ("test", 4)):
        rows = [{"question": f"{split} {number}", "answer": "x"} for number in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "data" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    source = {
        "kind": "dataset",
        "dataset": str(tmp_path / "data"),
        "test": "test",
        "columns": {"prompt": "question", "completion": "answer"},
    }
    outcome = run(tmp_path / "out", source, limit=20)
    assert (outcome.summary["examples"], outcome.summary["test"]) == (24, 4)
    wrong = settings({**source, "split": "trian"})
    (finding,) = examples_stage.check(wrong, context(tmp_path / "out"))
    assert finding.key == "source.split" and "trian" in finding.message


def test_nothing_left_for_training_is_refused_and_an_empty_split_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n", encoding="utf-8")
    with pytest.raises(DataError, match="no example is left for training: 0 came in") as caught:
        run(tmp_path / "out", {"kind": "files", "files": [str(file)]})
    assert caught.value.where == "a.yaml:3: stages.rows.source"
    file.write_text("text,label\na,b\n", encoding="utf-8")
    run(tmp_path / "out", {"kind": "files", "files": [str(file)]}, splits={"validation": 0.01, "test": 0.0})
    assert "the split `validation` gets no example" in capsys.readouterr().err


def test_a_summary_for_people(tmp_path: Path) -> None:
    outcome = run(tmp_path, {"kind": "python-docs", "task": "classify", "per_label": 30})
    counts, dropped, samples = summarize_examples(opened(tmp_path, outcome), samples=2)
    found = report(tmp_path)
    assert counts.columns == ["task", "label", *SPLITS]
    assert counts.rows[-1][2:] == [found["splits"][split]["rows"] for split in SPLITS]
    assert dropped.rows[:2] == [["came in", found["in"]], ["kept", found["kept"]]]
    assert [row[0] for row in samples.rows].count("train") == 2
    assert samples.columns == ["split", "text", "label"]
