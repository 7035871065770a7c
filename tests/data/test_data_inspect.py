from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmkit.config.base import Facts
from llmkit.console import Marked
from llmkit.data import stage
from llmkit.data.config import DataConfig
from llmkit.data.inspect import Table, marked_tokens, matching_rows, preview, summarize_documents, visible
from llmkit.data.inspect_duplicates import compare, duplicates_beside
from llmkit.data.inspect_measures import measures_of
from llmkit.data.inspect_rows import show_document
from llmkit.errors import ArtifactError, DataError
from llmkit.store.documents import read_documents
from llmkit.store.stage import Context, ResolvedInput


def make(tmp_path: Path, rows: Sequence[str], name: str = "out", **settings: Any) -> Path:
    """A corpus of lines of JSON."""
    file = tmp_path / f"{name}.jsonl"
    file.write_text("\n".join(rows))
    source = {"kind": "jsonl", "files": [str(file)], "name": "planted", "language": "en"}
    config = DataConfig.model_validate(
        {"sources": [source], "cleaning": {"repetition": None}, "splits": {"validation": 0.3, "test": 0}, **settings}
    )
    (tmp_path / name).mkdir()
    inputs = {
        key: ResolvedInput(key, path, Path(path), "0", Facts("documents"))
        for key, path in ((f"deduplication.earlier.{n}", path) for n, path in enumerate(config.deduplication.earlier))
    }
    stage.run(config, Context("corpus", 1, tmp_path / name, inputs))
    return tmp_path / name


def row(text: str) -> str:
    return json.dumps({"text": text})


def by_title(tables: Sequence[Table]) -> dict[str, Table]:
    return {table.title: table for table in tables}


def test_documents_can_be_looked_at(tmp_path: Path) -> None:
    lines = [row(f"Text {n} " + "with words " * 40) for n in range(30)]
    made = make(tmp_path, [*lines, row("short"), lines[0], "{", lines[1]])
    tables = by_title(summarize_documents(made, samples=1))
    assert list(tables) == [
        "Documents",
        "Sources",
        "Steps",
        "Lengths",
        "Languages",
        "Measures of length (33 documents)",
        "Samples",
        "Samples of what was dropped",
        "Duplicates beside what stayed",
    ]
    counts = tables["Documents"]
    assert counts.columns == ["source", "train", "validation", "test", "all"]
    name, train, validation, test, everything = counts.rows[0]
    assert (name, test, everything) == ("planted", 0, 30)
    assert train + validation == 30

    assert [line[:5] for line in tables["Sources"].rows] == [["planted", 34, 1, 3, 30], ["all", 34, 1, 3, 30]]
    assert [[line[0], line[1], line[4]] for line in tables["Steps"].rows] == [
        ["read", 34, "malformed 1"],
        ["unicode", 33, ""],
        ["length", 33, "too_short 1"],
        ["exact_duplicates", 32, "duplicate 2"],
    ]
    assert [line[:2] for line in tables["Languages"].rows] == [["en", 30]]

    kept = tables["Samples"]
    assert [line[0] for line in kept.rows] == ["train", "validation"]
    assert all(len(line[4]) == 160 and line[4].endswith("…") for line in kept.rows)
    dropped = tables["Samples of what was dropped"]
    assert [(line[0], line[2]) for line in dropped.rows] == [
        ("malformed", "out.jsonl"),
        ("too_short", "out.jsonl:31"),
        ("duplicate", "out.jsonl:32"),
    ]
    assert dropped.rows[1][4] == "short"


def test_samples_of_each_reason_are_found_wherever_they_are(tmp_path: Path) -> None:
    """More rows than a row group, and the one of another reason last."""
    rows = [row(f"a{n:04d}") for n in range(1500)] + [row("y" * 300), row("Some text that stays where it is.")]
    made = make(tmp_path, rows, cleaning={"length": {"max_characters": 200}, "repetition": None}, splits={"test": 0})
    (dropped,) = [table for table in summarize_documents(made, 2) if table.title == "Samples of what was dropped"]
    assert [line[-1][:5] for line in dropped.rows] == ["a0000", "a0001", "yyyyy"]


def test_rows_that_are_wanted_are_read_in_order(tmp_path: Path) -> None:
    made = make(tmp_path, [row(f"A document with the number {n:02d}.") for n in range(20)], splits={"validation": 0})
    files = sorted((made / "documents").glob("*.parquet"))
    found = matching_rows(files, ["path"], lambda values: values["path"].endswith("7"), ["text"])
    assert [line["text"][-3:] for line in found] == ["06.", "16."]


def test_lengths_double_from_row_to_row(tmp_path: Path) -> None:
    lengths = [20, 31, 32, 63, 64, 300]
    made = make(tmp_path, [row("z" * length) for length in lengths])
    table = by_title(summarize_documents(made))["Lengths"]
    assert table.bars == "documents"
    assert table.rows == [
        ["16 to 31", 2], ["32 to 63", 2], ["64 to 127", 1], ["128 to 255", 0], ["256 to 511", 1],
    ]  # fmt: skip


def test_measures_are_quantiles_of_what_was_kept_and_dropped(tmp_path: Path) -> None:
    draw = random.Random(3)
    lengths = [draw.randrange(1, 400) for _ in range(400)]
    made = make(tmp_path, [row(f"{n:04d}" + "x" * length) for n, length in enumerate(lengths)], splits={"test": 0})
    (table,) = measures_of(made)
    assert table.title == "Measures of length (400 documents)"
    assert table.columns == ["measure", "min", "5%", "median", "95%", "max"]
    expected = np.percentile(np.array(lengths) + 4, [0, 5, 50, 95, 100])
    assert table.rows == [["characters", *(pytest.approx(value) for value in expected.tolist())]]


def test_measures_of_some_row_groups_keep_the_extremes(tmp_path: Path) -> None:
    texts = ["b" * 1900, *(f"{n:04d} is a text that stays" for n in range(4000)), "c" * 5000]
    made = make(tmp_path, [row(text) for text in texts], splits={"validation": 0, "test": 0})
    groups = sum(pq.read_metadata(file).num_row_groups for file in made.glob("d*/*.parquet"))
    assert groups == 5
    (table,) = measures_of(made, sampled_rows=2000)
    assert table.title == "Measures of length (4,002 documents; quantiles from one row group in 2)"
    assert table.rows == [["characters", 25.0, 25.0, 25.0, 25.0, 5000.0]]


WORDS = [f"word{n}" for n in range(400)]


def test_duplicates_stand_beside_what_stayed(tmp_path: Path) -> None:
    near = [*WORDS[:20], "elephant", *WORDS[21:90], "crocodile", *WORDS[91:]]
    rows = [" ".join(WORDS), " ".join(near) + " and more words at the end", "Another text, quite short.",
            "Another  text,\nquite short."]  # fmt: skip
    made = make(tmp_path, [row(text) for text in rows], deduplication={"minhash": {"threshold": 0.5}})
    table = duplicates_beside(made, 3)
    assert [line[0] for line in table.rows] == ["minhash: 99% alike", "exact_duplicates: 100% alike"]
    near_rows, exact_rows = table.rows
    assert str(exact_rows[1]) == "planted: out.jsonl:4\nAnother text, quite short."
    assert str(exact_rows[2]) == "planted: out.jsonl:3\nAnother text, quite short."
    before, after = " ".join(WORDS[12:20]), " ".join(WORDS[21:52])
    assert str(near_rows[1]) == f"planted: out.jsonl:1\n… {before} [-word20-] {after} …"
    assert str(near_rows[2]) == f"planted: out.jsonl:2\n… {before} {{+elephant+}} {after} …"


def test_duplicates_of_what_went_later_and_of_earlier_corpora(tmp_path: Path) -> None:
    text, other = " ".join(WORDS), "A text that the earlier corpus has."
    earlier = make(tmp_path, [row(other)], "earlier", splits={"validation": 0})
    rows = [text, text.replace("word1 ", "word1  "), f"{text} and longer than the first", other, "And one that stays."]
    made = make(
        tmp_path,
        [row(line) for line in rows],
        deduplication={"minhash": {}, "earlier": [str(earlier)]},
        splits={"validation": 0, "test": 0},
    )
    rows_shown = {str(line[1]).split("\n")[0]: line for line in duplicates_beside(made, 5).rows}
    assert str(rows_shown["planted: out.jsonl:2"][2]).startswith(
        "planted: out.jsonl:1, dropped later by minhash\nword0 word1 word2"
    )
    assert str(rows_shown["planted: out.jsonl:1"][2]).startswith("planted: out.jsonl:3\n")
    assert rows_shown["planted: out.jsonl:4"][2].startswith("a document of an earlier corpus, or ")


def test_words_that_differ_are_marked() -> None:
    left, right, alike = compare("one two three four", "one 2 three four five")
    assert str(Marked(tuple(left))) == "one [-two-] three four"
    assert str(Marked(tuple(right))) == "one {+2+} three four {+five+}"
    assert alike == pytest.approx(2 * 3 / 9)
    left, right, alike = compare("", "a \x1b[31mb")
    assert (str(Marked(tuple(left))), str(Marked(tuple(right))), alike) == ("", r"{+a \x1b[31mb+}", 0)


def test_a_document_of_any_row_group_is_found(tmp_path: Path) -> None:
    made = make(tmp_path, [row(f"This is the document {n}.") for n in range(2500)], splits={"validation": 0})
    texts = [document.text for document in read_documents(made, ["train"])]
    for number in (0, 999, 1000, len(texts) - 1):
        facts, shown = show_document(made, "train", number, None)
        assert shown.rows == [["text", texts[number]]]
        assert ["length.characters", len(texts[number])] in facts.rows
    with pytest.raises(DataError, match=rf"no row {len(texts):,} in the split `train`; the last one is "):
        show_document(made, "train", len(texts), None)
    with pytest.raises(DataError, match="no split `dev`"):
        show_document(made, "dev", 0, None)


def test_tokens_of_one_character_stand_together() -> None:
    data = "aü\n€".encode() + b"\xff" + b"\x07"

    def decode(ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")

    shown = marked_tokens(list(data), decode, [0, 1, 1, 0, 0, 0, 0, 0, 1])
    assert str(shown) == "a|[[ü]]|\\n|€|\ufffd|[[\\x07]]"
    assert str(marked_tokens(b"a\nb", decode, break_lines=True)) == "a|\\n\n|b"
    assert str(marked_tokens([], decode)) == ""


def test_a_folder_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no documents here"):
        summarize_documents(tmp_path)


def test_previews_are_one_short_line() -> None:
    assert preview(" a\n\tb  c ") == "a b c"
    assert preview("x" * 1000) == "x" * 159 + "…"
    assert preview("x" * 160) == "x" * 160


def test_control_characters_reach_no_terminal() -> None:
    assert visible("a\x1b[2Jb\tc\nd\x9b\r") == "a\\x1b[2Jb\\tc\nd\\x9b\\r"
