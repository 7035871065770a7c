"""Planted records go through the whole stage; what becomes of each is worked out here by hand or by counting."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data import stage
from llmkit.data.cleaning.base import Dropped, Verdict
from llmkit.data.config import DataConfig
from llmkit.data.corpus import build, parts, reading, writing
from llmkit.data.sources.base import Broken, Record, Slice
from llmkit.errors import DataError
from llmkit.store.documents import Document, document_id, read_documents
from llmkit.store.stage import Context

OFF = {"unicode": None, "length": None, "repetition": None}


class Planted:
    """Reads records that were planted, a few in each slice."""

    def __init__(self, records: Sequence[Record], size: int = 100) -> None:
        self._records = list(records)
        self._size = size

    def slices(self) -> list[Slice]:
        return [Slice("planted", begin=begin) for begin in range(0, len(self._records), self._size)]

    def read(self, piece: Slice) -> Any:
        return iter(self._records[piece.begin : piece.begin + self._size])


class Cut:
    """Cuts texts to six characters, drops those that begin with `x`."""

    name = "cut"

    def apply(self, batch: Sequence[Document]) -> list[Verdict]:
        return [
            Dropped("x", d.text) if d.text.startswith("x") else d if len(d.text) <= 6 else replace(d, text=d.text[:6])
            for d in batch
        ]


def document(text: str, path: str = "p") -> Document:
    return Document("", text, "s", path)


def run(directory: Path, sources: Sequence[Sequence[Record]], size: int = 100, **settings: Any) -> dict[str, Any]:
    """The report, after running the stage over planted records."""
    named = {f"s{index}": Planted(records, size) for index, records in enumerate(sources)}
    config = DataConfig.model_validate(
        {
            "sources": [{"kind": "text", "files": ["a"], "name": name} for name in named],
            "executor": {"processes": 1},
            "splits": {"validation": 0.0, "test": 0.0},
            **settings,
        }
    )
    (directory / "out").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "open_reader", lambda source: named[source.label])
        try:
            stage.run(config, Context("corpus", 1, directory / "out"))
        except DataError as error:
            # Of few planted records none may be left.
            assert "no document is left" in error.message
    report: dict[str, Any] = json.loads((directory / "out" / "report.json").read_text())
    return report


def rows(directory: Path, name: str) -> list[dict[str, Any]]:
    return [
        row for file in sorted((directory / "out" / name).glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]


def test_every_number_of_a_planted_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "steps", lambda config: [Cut()])
    monkeypatch.setattr(build, "steps", lambda config: [Cut()])
    monkeypatch.setattr(reading, "step_settings", lambda config: {})
    records: list[Record] = [
        document("abc"),
        document("x out"),
        Broken("s", "p", "line 3: broken", "räw"),
        document("äbcdefgh"),
        document("abc"),
        document("äbcdef"),
        document("x again"),
    ]
    report = run(tmp_path, [records], cleaning=OFF)
    kept = list(read_documents(tmp_path / "out"))
    assert [(d.text, d.id) for d in kept] == [("abc", document_id("abc")), ("äbcdef", document_id("äbcdef"))]
    assert [(row["step"], row["reason"], row["text"]) for row in rows(tmp_path, "dropped")] == [
        ("cut", "x", "x out"),
        ("cut", "x", "x again"),
        ("exact_duplicates", "duplicate", "abc"),
        ("exact_duplicates", "duplicate", "äbcdef"),
    ]
    (broken,) = rows(tmp_path, "quarantine")
    assert broken == {"source": "s", "path": "p", "reason": "malformed", "detail": "line 3: broken", "text": "räw"}
    none: dict[str, int] = {}
    expected = {
        "in": 7,
        "kept": 2,
        "dropped": {"duplicate": 2, "x": 2},
        "quarantined": {"malformed": 1},
        "bytes_in": 3 + 5 + 4 + 9 + 3 + 7 + 7,
        "bytes_kept": 3 + 7,
        "steps": {
            "read": {
                "in": 7, "kept": 6, "changed": 0, "dropped": none, "quarantined": {"malformed": 1},
                "bytes_in": 38, "bytes_kept": 34,
            },
            "cut": {
                "in": 6, "kept": 4, "changed": 1, "dropped": {"x": 2}, "quarantined": none,
                "bytes_in": 34, "bytes_kept": 20,
            },
            "exact_duplicates": {
                "in": 4, "kept": 2, "changed": 0, "dropped": {"duplicate": 2}, "quarantined": none,
                "bytes_in": 20, "bytes_kept": 10,
            },
        },
    }  # fmt: skip
    assert report["total"] == report["sources"]["s0"] == expected


def test_duplicates_are_found_across_sources_and_white_space(tmp_path: Path) -> None:
    report = run(tmp_path, [[document("a b"), document("A b")], [document(" a\n\tb ")]], cleaning=OFF)
    assert report["sources"]["s1"]["dropped"] == {"duplicate": 1}
    assert report["total"]["kept"] == 2
    (row,) = rows(tmp_path, "dropped")
    assert row["detail"] == f"of {document_id('a b')}"


def test_lines_that_many_share_are_cut_and_what_is_left_is_counted(tmp_path: Path) -> None:
    notice = "All rights reserved by nobody in particular."
    texts = [f"Text number {number} says this.\n{notice}\nIt ends here." for number in range(3)]
    texts.append(f"{notice}\nShort.")
    report = run(
        tmp_path,
        [[document(text) for text in texts]],
        cleaning=OFF,
        deduplication={"lines": {"min_documents": 3, "min_characters": 30}, "min_characters": 10},
    )
    found = {d.text for d in read_documents(tmp_path / "out")}
    assert texts[0] in found
    assert len(found) == 3
    assert all(d.id == document_id(d.text) for d in read_documents(tmp_path / "out"))
    assert sum(notice in text for text in found) == 1
    (row,) = rows(tmp_path, "dropped")
    assert (row["step"], row["reason"], row["text"]) == ("lines", "too_short", texts[3])
    assert report["total"]["steps"]["lines"]["changed"] == 2
    assert report["total"]["bytes_kept"] == sum(map(len, found)) == report["splits"]["train"]["bytes"]


texts = st.one_of(
    st.sampled_from(["", "short", "a\r\nb " * 12, "same text, twice or more often", "line of text\n" * 40]),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=60),
)
records = st.lists(
    st.one_of(texts.map(document), st.text("abc", max_size=5).map(lambda t: Broken("s", "p", "why", t))), max_size=40
)


DEFAULT_STEPS = ["read", "unicode", "length", "repetition", "exact_duplicates"]
EVERYTHING: dict[str, Any] = {
    "cleaning": {
        "c4_lines": {"min_words": 2},
        "length": {"min_characters": 3},
        "gopher_quality": {"min_words": 2, "min_stop_words": 0},
        "gopher_repetition": {"max_top_ngrams": {2: 0.9}, "max_duplicate_lines": 0.9},
        "c4": {"min_sentences": 1},
        "fineweb": {"min_punctuated_lines": 0.01, "max_short_lines": 1.0},
    },
    "deduplication": {
        "minhash": {"ngram": 1, "permutations": 16, "threshold": 0.9},
        "paragraphs": {"min_characters": 8},
        "lines": {"min_characters": 8, "min_documents": 2},
        "substrings": {"min_bytes": 64},
        "min_characters": 4,
    },
}
ALL_STEPS = [
    "read", "unicode", "c4_lines", "length", "repetition", "gopher_quality", "gopher_repetition", "c4", "fineweb",
    "exact_duplicates", "minhash", "paragraphs", "lines", "substrings",
]  # fmt: skip


def check_sums(folder: Path, report: dict[str, Any], sources: Sequence[Sequence[Record]], steps: list[str]) -> None:
    """What came in is kept, dropped or in quarantine, by every count there is."""
    kept, dropped, quarantine = (rows(folder, name) for name in ("documents", "dropped", "quarantine"))
    assert report["total"]["in"] == sum(len(part) for part in sources) == len(kept) + len(dropped) + len(quarantine)
    assert report["total"]["dropped"] == dict(Counter(row["reason"] for row in dropped))
    assert report["total"]["quarantined"] == dict(Counter(row["reason"] for row in quarantine))
    assert report["total"]["bytes_kept"] == sum(len(row["text"].encode()) for row in kept)
    for index, part in enumerate(sources):
        assert report["sources"][f"s{index}"]["in"] == len(part)
    by_step = Counter((row["step"], row["reason"]) for row in dropped)
    for section in [*report["sources"].values(), report["total"]]:
        gone = sum(section["dropped"].values()) + sum(section["quarantined"].values())
        assert section["in"] == section["kept"] + gone
        assert list(section["steps"]) == steps
        counts = list(section["steps"].values())
        assert (counts[0]["in"], counts[-1]["kept"]) == (section["in"], section["kept"])
        for step, following in zip(counts, [*counts[1:], None], strict=True):
            assert step["in"] == step["kept"] + sum(step["dropped"].values()) + sum(step["quarantined"].values())
            assert 0 <= step["changed"] <= step["kept"]
            if following is not None:
                assert (step["kept"], step["bytes_kept"]) == (following["in"], following["bytes_in"])
    found = {
        (name, why): count for name, step in report["total"]["steps"].items() for why, count in step["dropped"].items()
    }
    assert found == dict(by_step)


@given(st.lists(records, min_size=1, max_size=3), st.integers(1, 50))
@settings(max_examples=30, deadline=None)
def test_counts_always_add_up(sources: list[list[Record]], size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_sums(Path(folder), run(Path(folder), sources, size), sources, DEFAULT_STEPS)


sentences = st.sampled_from([
    "The river has come down from the hills.", "Nobody was there to see it go.", "short one.", "Same, same!",
    "A long line that many of the documents have, from the first letter of it to the last of its words.",
    "\u00fcber alle Berge.", "- a point of a list", "{", "lorem ipsum dolor.", "no end",
])  # fmt: skip
prose = st.builds(
    lambda lines, gaps: "".join(line + gap for line, gap in zip(lines, gaps, strict=False)),
    st.lists(sentences, max_size=8),
    st.lists(st.sampled_from([" ", "\n", "\n\n"]), min_size=8, max_size=8),
)
prose_records = st.lists(
    st.one_of(prose.map(document), texts.map(document), st.just(Broken("s", "p", "why", "text"))), max_size=25
)


@given(st.lists(prose_records, min_size=1, max_size=2), st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_counts_add_up_with_every_step(sources: list[list[Record]], size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_sums(Path(folder), run(Path(folder), sources, size, **EVERYTHING), sources, ALL_STEPS)


@given(records)
@settings(max_examples=15, deadline=None)
def test_sizes_of_batches_parts_and_files_change_no_document(planted: list[Record]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = run(Path(folder) / "whole", [planted])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading, "_BATCH_DOCUMENTS", 1)
            patch.setattr(parts, "PART_ROWS", 3)
            patch.setattr(parts, "_GROUP_ROWS", 2)
            patch.setattr(writing, "FILE_ROWS", 5)
            patch.setattr(writing, "_GROUP_ROWS", 2)
            small = run(Path(folder) / "small", [planted], size=7)
        assert small == whole
        for name in ("documents", "quarantine"):
            assert rows(Path(folder) / "small", name) == rows(Path(folder) / "whole", name)
        ours, theirs = (
            Counter((row["id"], row["reason"]) for row in rows(Path(folder) / place, "dropped"))
            for place in ("small", "whole")
        )
        assert ours == theirs


def test_steps_can_be_left_out(tmp_path: Path) -> None:
    planted = [document("\x00"), document("\x00")]
    report = run(tmp_path, [planted], cleaning=OFF, deduplication={"exact": False})
    assert [d.text for d in read_documents(tmp_path / "out")] == ["\x00", "\x00"]
    assert list(report["total"]["steps"]) == ["read"]
