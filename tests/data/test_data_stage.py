from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llmkit.data import stage
from llmkit.data.config import DataConfig
from llmkit.errors import DataError
from llmkit.store.documents import Document, document_id, read_documents
from llmkit.store.splits import Splits, split_of
from llmkit.store.stage import Context, Outcome


def sentence(number: int) -> str:
    return f"This is the sentence with the number {number}."


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """20 sentences in two JSONL files, one of them given twice, and a table with good and bad rows."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    rows = [json.dumps({"text": sentence(number), "group": str(number % 4)}) for number in range(20)]
    (folder / "a.jsonl").write_text("\n".join([*rows[:12], "{broken"]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join([*rows[12:], rows[3]]).encode()))
    table = ["text,lang", f"{sentence(20)},en", "too few", "short,en", f" {sentence(5)},en", f"{sentence(21)}\u200b,de"]
    (folder / "c.csv").write_text("\n".join(table))
    return folder


def settings(folder: Path, **other: Any) -> DataConfig:
    sources = [
        {"kind": "jsonl", "files": [str(folder)], "metadata": ["group"], "license": "CC0-1.0"},
        {"kind": "csv", "files": [f"{folder}/*.csv"], "name": "table", "language": "en"},
    ]
    return DataConfig.model_validate({"sources": sources, "splits": {"validation": 0.2, "test": 0.2}, **other})


def run(config: DataConfig, directory: Path) -> Outcome:
    directory.mkdir(exist_ok=True)
    context = Context("corpus", 1, directory, where="a.yaml:3: stages.corpus")
    assert stage.check(config, context) == []
    return stage.run(config, context)


def contents(directory: Path) -> dict[str, bytes]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_planted_records_are_all_accounted_for(tmp_path: Path, inputs: Path) -> None:
    outcome = run(settings(inputs), tmp_path / "out")
    documents = {document.text: document for document in read_documents(tmp_path / "out")}
    assert set(documents) == {sentence(number) for number in range(22)}
    for number in range(22):
        found = documents[sentence(number)]
        identity = document_id(sentence(number))
        split = split_of(identity, Splits(validation=0.2, test=0.2))
        if number < 20:
            path = f"a.jsonl:{number + 1}" if number < 12 else f"b.jsonl.gz:{number - 11}"
            expected = Document(
                identity, sentence(number), "jsonl", path, "CC0-1.0", None, {"group": str(number % 4)}, split
            )
        else:
            path = "c.csv:2" if number == 20 else "c.csv:6"
            expected = Document(identity, sentence(number), "table", path, None, "en", {}, split)
        assert found == expected

    dropped = pq.read_table(tmp_path / "out/dropped").to_pylist()
    assert [(row["source"], row["path"], row["step"], row["reason"]) for row in dropped] == [
        ("jsonl", "b.jsonl.gz:9", "exact_duplicates", "duplicate"),
        ("table", "c.csv:4", "length", "too_short"),
        ("table", "c.csv:5", "exact_duplicates", "duplicate"),
    ]
    assert [row["detail"] for row in dropped] == [
        f"of {document_id(sentence(3))}",
        "5 characters",
        f"of {document_id(sentence(5))}",
    ]
    assert [row["text"] for row in dropped] == [sentence(3), "short", f" {sentence(5)}"]
    quarantine = pq.read_table(tmp_path / "out/quarantine").to_pylist()
    found = [(row["source"], row["path"], row["reason"], row["detail"].partition(":")[0]) for row in quarantine]
    assert found == [("jsonl", "a.jsonl", "malformed", "line 13"), ("table", "c.csv", "malformed", "line 3")]
    assert [row["text"] for row in quarantine] == ["{broken", "too few"]

    report = json.loads((tmp_path / "out/report.json").read_text())
    bytes_of = sum(len(sentence(number)) for number in range(22))
    assert report["sources"]["jsonl"]["in"] == 22
    assert report["sources"]["jsonl"]["kept"] == 20
    assert report["sources"]["jsonl"]["dropped"] == {"duplicate": 1}
    assert report["sources"]["table"]["dropped"] == {"duplicate": 1, "too_short": 1}
    assert [report["sources"][name]["quarantined"] for name in ("jsonl", "table")] == [{"malformed": 1}] * 2
    assert report["sources"]["table"]["steps"]["unicode"]["changed"] == 1
    assert report["total"]["kept"] == 22
    assert report["total"]["bytes_kept"] == bytes_of
    splits = Counter(document.split for document in documents.values())
    assert {name: row["documents"] for name, row in report["splits"].items()} == splits
    assert sum(row["bytes"] for row in report["splits"].values()) == bytes_of

    assert outcome.facts.get("splits") == ["train", "validation", "test"]
    assert {key: outcome.summary[key] for key in ("documents", "dropped", "quarantined", "bytes")} == {
        "documents": 22, "dropped": 3, "quarantined": 2, "bytes": bytes_of,
    }  # fmt: skip
    assert list(outcome.content) == ["documents/*.parquet"]


def test_the_same_inputs_elsewhere_give_the_same_bytes(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(settings(inputs), tmp_path / "one")
    inputs.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    run(settings(Path("moved")), tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_what_an_interrupted_attempt_left_does_no_harm(tmp_path: Path, inputs: Path) -> None:
    run(settings(inputs), tmp_path / "whole")
    broken = tmp_path / "broken"
    for name in ("documents/train-00000.parquet", "documents/train-00007.parquet", "dropped/dropped-00003.parquet"):
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).write_bytes(b"PAR1 half a file")
    run(settings(inputs), broken)
    assert contents(broken) == contents(tmp_path / "whole")


def test_documents_stay_in_their_split_when_others_come(tmp_path: Path, inputs: Path) -> None:
    run(settings(inputs), tmp_path / "before")
    rows = "\n".join(json.dumps({"text": sentence(number), "group": "x"}) for number in range(100, 140))
    (inputs / "0.jsonl").write_text(rows)
    run(settings(inputs), tmp_path / "after")
    before = {document.id: document.split for document in read_documents(tmp_path / "before")}
    after = {document.id: document.split for document in read_documents(tmp_path / "after")}
    assert len(after) == len(before) + 40
    assert {key: after[key] for key in before} == before


def test_documents_with_one_split_key_stay_together(tmp_path: Path, inputs: Path) -> None:
    source = {"kind": "jsonl", "files": [str(inputs)], "metadata": ["group"], "split_key": "group"}
    config = DataConfig.model_validate({"sources": [source], "splits": {"validation": 0.3, "test": 0.3}})
    run(config, tmp_path / "out")
    for document in read_documents(tmp_path / "out"):
        assert document.split == split_of(document.metadata["group"], config.splits)


def test_the_split_key_can_be_the_path_and_falls_back_to_the_text(tmp_path: Path, inputs: Path) -> None:
    half = {"validation": 0.5, "test": 0.0}
    for key in ("path", "nowhere"):
        source = {"kind": "jsonl", "files": [str(inputs)], "split_key": key}
        run(DataConfig.model_validate({"sources": [source], "splits": half}), tmp_path / key)
        for document in read_documents(tmp_path / key):
            wanted = document.path if key == "path" else document.id
            assert document.split == split_of(wanted, Splits.model_validate(half))


def test_a_limit_is_one_of_records(tmp_path: Path, inputs: Path) -> None:
    source = {"kind": "jsonl", "files": [str(inputs)], "limit": 15}
    run(DataConfig.model_validate({"sources": [source]}), tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["total"]["in"], report["total"]["kept"]) == (15, 14)


def test_no_document_for_training_is_an_error_that_says_why(tmp_path: Path, inputs: Path) -> None:
    config = settings(inputs, cleaning={"length": {"min_characters": 1000}})
    with pytest.raises(DataError, match=r"stages\.corpus\.sources: no document is left .* 27 read, 0 kept") as caught:
        run(config, tmp_path / "out")
    assert "25 too_short, 2 quarantined (malformed)" in str(caught.value)


def test_missing_files_and_columns_are_found_before_the_work(tmp_path: Path, inputs: Path) -> None:
    sources = [
        {"kind": "python-docs", "exclude": ["no_such_module"]},
        {"kind": "text", "files": [str(inputs), "nowhere/*.txt"]},
        {"kind": "csv", "files": [f"{inputs}/c.csv"], "text": "txt"},
    ]
    findings = stage.check(DataConfig.model_validate({"sources": sources}), Context("corpus", 1, tmp_path))
    assert [finding.key for finding in findings] == [
        "sources.0.exclude.0",
        "sources.1.files.0",
        "sources.1.files.1",
        "sources.2.text",
    ]


def test_a_dataset_that_breaks_off_says_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    config = DataConfig.model_validate({"sources": [{"kind": "dataset", "dataset": "owner/name"}]})
    with pytest.raises(DataError, match=r"stages\.corpus\.sources\.0: .*no route to host"):
        stage.run(config, Context("corpus", 1, tmp_path, where="a.yaml:3: stages.corpus"))
