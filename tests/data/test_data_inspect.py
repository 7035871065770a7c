from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.data import stage
from llmkit.data.config import DataConfig
from llmkit.data.inspect import preview, summarize_documents
from llmkit.errors import ArtifactError
from llmkit.store.stage import Context


def test_documents_can_be_looked_at(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"Text {n} " + "with words " * 40}) for n in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"text": "short"}', lines[0], "{", lines[1]]))
    cleaning = {"repetition": None}
    source = {"kind": "jsonl", "files": [str(tmp_path / "a.jsonl")], "name": "planted"}
    config = DataConfig.model_validate(
        {"sources": [source], "cleaning": cleaning, "splits": {"validation": 0.3, "test": 0}}
    )
    (tmp_path / "out").mkdir()
    stage.run(config, Context("corpus", 1, tmp_path / "out"))
    counts, steps, kept, dropped = summarize_documents(tmp_path / "out", samples=1)

    assert counts.columns == ["source", "train", "validation", "test", "all"]
    name, train, validation, test, everything = counts.rows[0]
    assert (name, test, everything) == ("planted", 0, 30)
    assert train + validation == 30

    assert [row[1:3] for row in steps.rows] == [["read", 34], ["unicode", 33], ["length", 33], ["exact_duplicates", 32]]
    assert [row[-1] for row in steps.rows] == ["malformed 1", "", "too_short 1", "duplicate 2"]

    assert [row[0] for row in kept.rows] == ["train", "validation"]
    assert all(len(row[4]) == 160 and row[4].endswith("…") for row in kept.rows)

    assert [(row[0], row[2]) for row in dropped.rows] == [
        ("malformed", "a.jsonl"),
        ("too_short", "a.jsonl:31"),
        ("duplicate", "a.jsonl:32"),
    ]
    assert dropped.rows[1][4] == "short"


def test_a_folder_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no documents here"):
        summarize_documents(tmp_path)


def test_previews_are_one_short_line() -> None:
    assert preview(" a\n\tb  c ") == "a b c"
    assert preview("x" * 1000) == "x" * 159 + "…"
    assert preview("x" * 160) == "x" * 160
