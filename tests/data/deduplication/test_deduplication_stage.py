"""All methods together in the stage `data`: across sources, against an earlier corpus, by any number of processes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llmkit.config.base import Facts
from llmkit.data import stage
from llmkit.data.config import DataConfig
from llmkit.data.deduplication import base, substrings
from llmkit.store.documents import document_id, read_documents
from llmkit.store.stage import Context, ResolvedInput

METHODS: dict[str, Any] = {
    "minhash": {"ngram": 2, "threshold": 0.7},
    "paragraphs": {"min_characters": 30},
    "lines": {"min_characters": 20, "min_documents": 3},
    "substrings": {"min_bytes": 100},
}


def write(file: Path, texts: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def run(
    directory: Path, files: list[Path], deduplication: dict[str, Any], processes: int = 1, earlier: Path | None = None
) -> dict[str, Any]:
    """The report of a corpus of JSONL files, each a source."""
    config = DataConfig.model_validate(
        {
            "sources": [{"kind": "jsonl", "files": [str(file)], "name": file.stem} for file in files],
            "cleaning": {"unicode": None, "length": None, "repetition": None},
            "deduplication": {**deduplication, "earlier": [] if earlier is None else [str(earlier)]},
            "executor": {"processes": processes},
        }
    )
    directory.mkdir()
    inputs = {}
    if earlier is not None:
        key = "deduplication.earlier.0"
        inputs[key] = ResolvedInput(key, str(earlier), earlier, "digest", Facts("documents"))
    context = Context("corpus", 1, directory, inputs)
    assert stage.check(config, context) == []
    stage.run(config, context)
    report: dict[str, Any] = json.loads((directory / "report.json").read_text())
    return report


def contents(directory: Path) -> dict[str, bytes]:
    files = sorted(file for folder in ("documents", "dropped") for file in (directory / folder).iterdir())
    return {file.relative_to(directory).as_posix(): file.read_bytes() for file in files}


def duplicated(draw: random.Random, count: int) -> list[str]:
    """Texts of sentences that repeat as wholes, nearly, by the paragraph, by the line and within lines."""

    def sentence(words: int = 9) -> str:
        return " ".join(f"{draw.choice('bcdfg')}{draw.choice('aeiou')}{draw.randint(0, 99)}" for _ in range(words))

    texts = ["\n\n".join(sentence(20) for _ in range(4)) for _ in range(count)]
    shared, notice, middle = sentence(12), sentence(8), sentence(40)
    for row in range(0, count, 3):
        texts.append(texts[row + 1] + ("  " if row % 2 else " and one more"))
        texts[row] += f"\n\n{shared}\n\n{sentence()}\n{notice}\n{sentence()} {middle} {sentence()}"
    draw.shuffle(texts)
    return texts


def test_processes_and_shares_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    files = [write(tmp_path / f"{name}.jsonl", duplicated(draw, 24)) for name in ("one", "two")]
    report = run(tmp_path / "whole", files, METHODS)
    steps = report["total"]["steps"]
    assert list(steps) == ["read", "exact_duplicates", *METHODS]
    assert steps["exact_duplicates"]["dropped"] and steps["minhash"]["dropped"]
    assert all(steps[name]["changed"] for name in ("paragraphs", "lines", "substrings"))
    # About 20 keys in each share of the work.
    monkeypatch.setattr(base.count_shares, "__defaults__", (20,))
    monkeypatch.setattr(substrings, "_ENTRIES", 20)
    assert run(tmp_path / "shares", files, METHODS) == report
    assert run(tmp_path / "processes", files, METHODS, processes=2) == report
    assert contents(tmp_path / "shares") == contents(tmp_path / "processes") == contents(tmp_path / "whole")


def test_an_earlier_corpus_and_other_sources_are_looked_at(tmp_path: Path) -> None:
    draw = random.Random(1)

    def text() -> str:
        return " ".join(str(draw.randint(0, 10**9)) for _ in range(60))

    known, near, fresh, other = (text() for _ in range(4))
    run(tmp_path / "before", [write(tmp_path / "old.jsonl", [known, near])], {})
    one = write(tmp_path / "one.jsonl", [fresh, f" {known}\n", f"{near} and more words than before"])
    two = write(tmp_path / "two.jsonl", [f"{fresh} too", other, known])
    report = run(tmp_path / "after", [one, two], {"minhash": {}}, earlier=tmp_path / "before")
    assert [document.text for document in read_documents(tmp_path / "after")] == [f"{fresh} too", other]
    dropped = pq.read_table(tmp_path / "after" / "dropped").to_pylist()
    assert [(row["source"], row["reason"], row["detail"]) for row in dropped] == [
        ("one", "near_duplicate", f"of {document_id(f'{fresh} too')}"),
        ("one", "duplicate", f"of {document_id(known)}"),
        ("one", "near_duplicate", f"of {document_id(near)}"),
        ("two", "duplicate", f"of {document_id(known)}"),
    ]
    # The documents of the earlier corpus are in no count.
    assert (report["total"]["in"], report["total"]["kept"]) == (6, 2)
