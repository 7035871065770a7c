from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.config.base import Facts
from llmkit.data.examples import (
    Conversation,
    LabelledText,
    Preference,
    examples_of_files,
    files_by_split,
    read_conversations,
    read_labels,
    read_preferences,
    split_examples,
    write_examples,
)
from llmkit.errors import ArtifactError, DataError
from llmkit.store.artifact import Artifact, Manifest
from llmkit.store.splits import SPLITS
from llmkit.store.stage import ResolvedInput


def jsonl(file: Path, rows: list[dict[str, object]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def given_files(path: Path) -> ResolvedInput:
    return ResolvedInput("data", str(path), path, "", Facts("file"))


def given_artifact(path: Path, **facts: object) -> ResolvedInput:
    manifest = Manifest("examples", "examples", "x", "", "", {}, {}, facts, {}, {}, ())
    return ResolvedInput("data", "x", path, "", Facts("examples", facts), Artifact(path, manifest))


def conversation(prompt: str, answer: str = "yes") -> dict[str, object]:
    return {"prompt": prompt, "completion": answer}


def test_a_file_is_divided_by_prompt_into_splits_that_share_none_and_lose_none(tmp_path: Path) -> None:
    rows = [conversation(f"question {index // 2}", f"answer {index}") for index in range(2000)]
    source = given_files(jsonl(tmp_path / "rows.jsonl", rows))
    found = {split: read_conversations(source, split) for split in SPLITS}
    prompts = {split: {row.prompt[0]["content"] for row in found[split]} for split in SPLITS}
    assert sum(len(found[split]) for split in SPLITS) == 2000
    assert sum(len(prompts[split]) for split in SPLITS) == 1000
    assert 20 < len(prompts["test"]) < 80
    assert 20 < len(prompts["validation"]) < 80


def test_the_split_of_a_row_does_not_depend_on_its_neighbours_or_its_format(tmp_path: Path) -> None:
    rows = [conversation(f"question {index}") for index in range(300)]
    messages = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": "yes"}]}
        for row in reversed(rows[:200])
    ]
    one = read_conversations(given_files(jsonl(tmp_path / "a.jsonl", rows)), "validation")
    other = read_conversations(given_files(jsonl(tmp_path / "b.jsonl", messages)), "validation")
    early = [row for row in one if int(row.messages[0]["content"].split()[1]) < 200]
    assert [row.messages for row in other] == [row.messages for row in reversed(early)]
    assert {row.id for row in other} == {row.id for row in early}


def test_a_folder_named_after_the_splits_has_these_splits(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [conversation(f"t{index}") for index in range(400)])
    jsonl(tmp_path / "test.part.jsonl", [conversation(f"s{index}") for index in range(40)])
    source = given_files(tmp_path)
    assert [row.messages[0]["content"] for row in read_conversations(source, "test")] == [f"s{n}" for n in range(40)]
    # What is not there is taken out of the training part.
    validation = {row.messages[0]["content"] for row in read_conversations(source, "validation")}
    train = {row.messages[0]["content"] for row in read_conversations(source, "train")}
    assert validation and not validation & train
    assert validation | train == {f"t{index}" for index in range(400)}


def test_files_are_found_by_pattern_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "c.txt"):
        (tmp_path / name).write_text("", encoding="utf-8")
    assert files_by_split(tmp_path) == {"train": [tmp_path / "a.csv", tmp_path / "b.jsonl"]}
    assert files_by_split(tmp_path / "*.jsonl") == {"train": [tmp_path / "b.jsonl"]}
    with pytest.raises(DataError, match="no file of examples"):
        files_by_split(tmp_path / "nothing-*.jsonl")


def test_labels_are_read_from_the_columns_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("sentence,score\n" + "".join(f"text {n},{n % 2}\n" for n in range(50)), encoding="utf-8")
    found = [row for split in SPLITS for row in read_labels(given_files(file), split, text="sentence", label="score")]
    assert {(row.text, row.label) for row in found} == {(f"text {n}", str(n % 2)) for n in range(50)}


def test_dialogues_are_read_as_preferences(tmp_path: Path) -> None:
    start = "\n\nHuman: Hi?\n\nAssistant:"
    file = jsonl(tmp_path / "rows.jsonl", [{"chosen": f"{start} Hello.", "rejected": f"{start} No."}])
    (found,) = [row for split in SPLITS for row in read_preferences(given_files(file), split)]
    assert found.to_row() == {
        "id": found.id,
        "prompt": [{"role": "user", "content": "Hi?"}],
        "chosen": "Hello.",
        "rejected": "No.",
    }


def test_an_artifact_is_read_by_split_and_by_kind(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [{"id": "a", "text": "x", "label": "y"}])
    jsonl(tmp_path / "validation.jsonl", [])
    source = given_artifact(tmp_path, format="labels")
    assert read_labels(source, "train", text="ignored") == [LabelledText("a", "x", "y")]
    assert read_labels(source, "validation") == []
    with pytest.raises(ArtifactError, match="labels, and conversations are wanted"):
        read_conversations(source, "train")
    with pytest.raises(ArtifactError, match=r"no file `test.jsonl`"):
        read_labels(source, "test")


def test_rows_of_another_kind_and_rows_that_change_their_shape_are_refused(tmp_path: Path) -> None:
    labels = jsonl(tmp_path / "labels.jsonl", [{"text": "x", "label": "y"}])
    with pytest.raises(DataError, match="one of labels, and conversations are wanted") as caught:
        read_conversations(given_files(labels), "train")
    assert caught.value.where == f"{labels}:1"
    mixed = jsonl(tmp_path / "mixed.jsonl", [conversation("a"), {"instruction": "b", "output": "c"}])
    with pytest.raises(DataError, match="`prompt` has to be a text, and is absent") as caught:
        list(examples_of_files([mixed], "conversations"))
    assert caught.value.where == f"{mixed}:2"
    broken = tmp_path / "broken.jsonl"
    broken.write_text("nonsense\n", encoding="utf-8")
    with pytest.raises(DataError, match="not JSON") as caught:
        list(examples_of_files([broken], "conversations"))
    assert caught.value.where == f"{broken}:1"


def test_the_kind_of_a_file_is_told_by_its_first_row(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [{"text": f"text {n}", "label": "x"} for n in range(100)])
    kind, found = split_examples(given_files(file))
    assert kind == "labels"
    assert list(found) == list(SPLITS)
    assert found["train"] == read_labels(given_files(file), "train")
    assert sum(map(len, found.values())) == 100
    for text, problem in (("", "no row in it"), ("[]\n", "not an array"), ('{"x": 1}\n', "fit no known format")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=problem):
            split_examples(given_files(file))


def test_an_unknown_split_is_a_fault_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown split"):
        read_labels(given_files(tmp_path), "valid")


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: bool(text.strip()))
names = st.one_of(st.none(), st.text("abc", min_size=1))


@settings(deadline=None, max_examples=50)
@given(texts, texts, texts, names)
def test_what_is_written_is_read_back(first: str, second: str, third: str, task: str | None) -> None:
    import tempfile

    messages = [
        {"role": "system", "content": third},
        {"role": "user", "content": first},
        {"role": "assistant", "content": second},
    ]
    examples = {
        "conversations": Conversation("c", messages, task, {"object": first, "n": 1}),
        "labels": LabelledText("l", first, second.strip(), task, {"tags": [first]}),
        "preferences": Preference("p", messages[:2], second, second + "x", task, {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        for kind, example in examples.items():
            file = Path(folder) / f"{kind}.jsonl"
            assert write_examples(file, [example, example]) == 2
            assert list(examples_of_files([file], kind)) == [example, example]
