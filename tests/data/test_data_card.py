from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
import yaml
from markdown_it import MarkdownIt

from llmkit.config.base import Facts, Input
from llmkit.data import stage
from llmkit.data.card.gaps import steps_left_out
from llmkit.data.card.hub import hub_language, hub_license, hub_size
from llmkit.data.card.markdown import code, plain, settings_line, table
from llmkit.data.card.portable import portable_input, portable_settings
from llmkit.data.config import DataConfig
from llmkit.data.corpus.census import add_up, count_documents_of, over_sources
from llmkit.store.documents import read_documents
from llmkit.store.stage import Context, ResolvedInput

WORDS = "the river of time and that house with people have be to walk under over music science small world year"


def prose(seed: int, words: int = 60) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choices(WORDS.split(), k=words)) + "."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 notes, one of them twice, one short, one broken, one with an address; and two tables without a licence."""
    folder = tmp_path_factory.mktemp("card")
    notes = [{"text": prose(seed), "date": f"20{seed:02d}-05-01T10:00:00Z"} for seed in range(1, 21)]
    notes += [{"text": prose(3)}, {"text": "too short"}, {"text": f"{prose(21)} jane.doe@gmail.com"}]
    (folder / "notes.jsonl").write_text("\n".join([*map(json.dumps, notes), "{broken"]))
    (folder / "table.csv").write_text(f"text\n{prose(31)}\n{prose(32)}\n")
    make(folder / "out", folder)
    return folder


def settings(folder: Path) -> DataConfig:
    note = {"kind": "jsonl", "name": "a|b", "metadata": ["date"], "license": "CC-BY-4.0", "language": "en-GB"}
    return DataConfig.model_validate(
        {
            "sources": [
                {**note, "files": [str(folder / "notes.jsonl")]},
                {"kind": "csv", "files": [f"{folder}/*.csv"]},
            ],
            "cleaning": {
                "gopher_quality": {"min_words": 7},
                "personal_data": {"phone": "keep", "seed": 4711},
                "repetition": None,
            },
            "splits": {"validation": 0.2, "test": 0},
        }
    )


def make(out: Path, folder: Path) -> None:
    config = settings(folder)
    inputs = {
        needed.key: ResolvedInput(needed.key, needed.value, Path(needed.value), f"digest{index}", Facts("file"))
        for index, needed in enumerate(config.inputs())
    }
    out.mkdir()
    stage.run(config, Context("corpus", 1, out, inputs))


def card(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The front matter of a card, and its sections by title."""
    _, head, body = (folder / "out/README.md").read_text(encoding="utf-8").split("---\n", 2)
    sections = re.split(r"^## (.+)$", body, flags=re.MULTILINE)
    return yaml.safe_load(head), {"": sections[0], **dict(zip(sections[1::2], sections[2::2], strict=True))}


def cells(text: str) -> list[list[str]]:
    """The cells of the first table in a text, as a reader of Markdown finds them."""
    rows: list[list[str]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_close":
            break
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline" and rows:
            children = token.children or []
            rows[-1].append("".join(child.content for child in children if child.type in ("text", "code_inline")))
    return rows


def test_the_folder_opens_as_a_dataset(corpus: Path, tmp_path: Path) -> None:
    opened = datasets.load_dataset(str(corpus / "out"), cache_dir=str(tmp_path))
    documents = list(read_documents(corpus / "out"))
    assert {split: list(rows["text"]) for split, rows in opened.items()} == {
        split: [document.text for document in documents if document.split == split] for split in ("train", "validation")
    }
    assert len(documents) == 23
    head, _ = card(corpus)
    assert {key: value for key, value in head.items() if key != "configs"} == {
        "pretty_name": "corpus",
        "license": ["cc-by-4.0", "unknown"],
        "language": ["en"],
        "task_categories": ["text-generation"],
        "size_categories": ["n<1K"],
    }


def test_what_was_planted_is_in_the_card(corpus: Path) -> None:
    _, sections = card(corpus)
    size = sum(len(document.text) for document in read_documents(corpus / "out"))
    assert f"23 documents, {size:,} characters, {size:,} bytes in UTF-8." in sections[""]
    columns, notes, plain_table = cells(sections["Sources"])
    found = dict(zip(columns, notes, strict=True))
    assert found | {"bytes": ""} == {
        "source": "a|b", "kind": "jsonl", "licence": "CC-BY-4.0", "language": "en-GB",
        "written": "2001-05-01 to 2020-05-01", "read": "24", "unreadable": "1", "dropped": "2", "kept": "21",
        "bytes": "",
    }  # fmt: skip
    assert plain_table[:8] == ["csv", "csv", "not recorded", "not recorded", "not recorded", "2", "0", "0"]
    assert '- `a|b`: `files: ["notes.jsonl"]`, `metadata: ["date"]`.' in sections["Sources"]
    assert [row[:2] for row in cells(sections["Licences"])[1:]] == [["CC-BY-4.0", "21"], ["not recorded", "2"]]
    assert [row[:2] for row in cells(sections["Languages"])[1:]] == [["en-GB", "21"], ["not recorded", "2"]]
    splits = Counter(document.split for document in read_documents(corpus / "out"))
    assert {row[0]: int(row[1]) for row in cells(sections["Splits"])[1:]} == {**splits, "test": 0}
    assert [[row[0], row[1], row[4]] for row in cells(sections["What was done"])[1:]] == [
        ["read", "26", "malformed 1"],
        ["unicode", "25", ""],
        ["personal_data", "25", ""],
        ["length", "25", "too_short 1"],
        ["gopher_quality", "24", ""],
        ["exact_duplicates", "24", "duplicate 1"],
    ]
    assert "`gopher_quality`: Gopher's quality filter: whether a text is prose. " in sections["What was done"]
    assert "`min_words: 7`, `max_words: 100000`" in sections["What was done"]
    assert "Documents changed: 1, dropped: 0." in sections["Personal data"]
    assert ["email", "mask"] in cells(sections["Personal data"])
    assert "phone" not in sections["Personal data"]


def test_gaps_are_told(corpus: Path) -> None:
    _, sections = card(corpus)
    gaps = sections["Known gaps"]
    assert "- 1 of 26 records could not be read, and what they hold is missing (malformed 1)." in gaps
    assert "- No licence is recorded of 2 of 23 documents (in `csv`)." in gaps
    assert "- No language is recorded of 2 of 23 documents (in `csv`)." in gaps
    assert "- No date is recorded of 3 of 23 documents." in gaps
    assert "- `minhash` was left out." in gaps
    assert "- `decontamination` was left out." in gaps
    assert "- Personal data of these kinds was not looked for: `phone`." in gaps
    assert "Names and postal addresses of persons were not looked for." in gaps
    assert "near duplicates in the training split" in gaps
    report = json.loads((corpus / "out/report.json").read_text())
    assert [f"- {gap}" for gap in report["gaps"]] == gaps.strip().split("\n")


def test_every_step_is_either_described_or_a_gap(corpus: Path) -> None:
    """Whatever steps are added to the settings: none of them is passed over."""
    _, sections = card(corpus)
    config = settings(corpus)
    for name in type(config.cleaning).model_fields:
        done = f"\n- `{name}`: " in sections["What was done"]
        assert done != (f"- `{name}` was left out." in sections["Known gaps"])
        assert done == (name not in steps_left_out(config.cleaning))


def test_the_settings_in_a_card_make_the_corpus_again(corpus: Path, tmp_path: Path) -> None:
    _, sections = card(corpus)
    text = re.findall(r"```yaml\n(.*?)```", sections["How to make it again"], re.DOTALL)[0]
    written = yaml.safe_load(text)
    assert written["sources"][0]["files"] == ["notes.jsonl"]
    for index, file in enumerate(("notes.jsonl", "*.csv")):
        written["sources"][index]["files"] = [str(corpus / file)]
    tmp_path.joinpath("again").mkdir()
    stage.run(DataConfig.model_validate(written), Context("corpus", 1, tmp_path / "again"))
    assert list(read_documents(tmp_path / "again")) == list(read_documents(corpus / "out"))
    assert "`digest0`" in sections["How to make it again"]


def test_cards_tell_nothing_of_the_machine_and_are_equal_elsewhere(corpus: Path, tmp_path: Path) -> None:
    text = (corpus / "out/README.md").read_text(encoding="utf-8")
    assert str(corpus) not in text
    assert "4711" not in text
    for name in ("notes.jsonl", "table.csv"):
        (tmp_path / name).write_bytes((corpus / name).read_bytes())
    make(tmp_path / "out", tmp_path)
    assert (tmp_path / "out/README.md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("value", "kinds", "expected"),
    [
        ("/home/jane/texts/a.jsonl", ("file",), "a.jsonl"),
        ("/home/jane/**/pages/*.html", ("file",), "**/pages/*.html"),
        ("/home/jane/texts", ("file",), "<folder>"),
        ("texts/", ("file",), "<folder>"),
        ("s3://key:secret@bucket/texts/*.txt?token=1", ("file",), "s3://bucket/texts/*.txt"),
        ("https://example.org/a.txt", ("file",), "https://example.org/a.txt"),
        ("file:///home/jane/a.txt", ("file",), "a.txt"),
        ("zip://*.txt::/home/jane/texts.zip", ("file",), "zip://*.txt::texts.zip"),
        ("corpus", ("documents",), "corpus"),
        ("/home/jane/runs/web/corpus", ("documents",), "corpus"),
        ("hf:owner/name", ("model",), "hf:owner/name"),
    ],
)
def test_inputs_are_named_without_what_belongs_to_a_machine(value: str, kinds: tuple[str, ...], expected: str) -> None:
    assert portable_input(Input("key", value, kinds)) == expected


def test_settings_without_what_belongs_to_a_person() -> None:
    source = {"kind": "web", "contact": "jane@example.org", "cache": "/home/jane/c", "urls": ["https://example.org/a"]}
    config = DataConfig.model_validate(
        {"sources": [source], "cleaning": {"length": None, "c4": {}}, "executor": {"processes": 3}, "seed": 5}
    )
    assert portable_settings(config, defaults=False) == {
        "stage": "data",
        "seed": 5,
        "sources": [{"kind": "web", "urls": ["https://example.org/a"]}],
        "cleaning": {"length": None, "c4": {}},
    }
    everything = portable_settings(config, defaults=True)
    assert everything["cleaning"]["c4"]["min_sentences"] == 5
    assert {"contact", "cache"}.isdisjoint(everything["sources"][0])
    assert {"executor", "work"}.isdisjoint(everything)


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        ("CC-BY-SA-4.0", "cc-by-sa-4.0"),
        ("GPL-3.0-only", "gpl-3.0"),
        ("LGPL-2.1-or-later", "lgpl-2.1"),
        ("ODC-By-1.0", "odc-by"),
        ("MIT", "mit"),
        ("MIT-0", "other"),
        ("PSF-2.0", "other"),
        ("", "unknown"),
    ],
)
def test_names_of_licences_on_the_hub(license: str, expected: str) -> None:
    assert hub_license(license) == expected


def test_languages_and_sizes_on_the_hub() -> None:
    assert [hub_language(tag) for tag in ("en", "de-AT", "yue", "zh-Hans-CN", "", "English")] == [
        "en", "de", "yue", "zh", None, None,
    ]  # fmt: skip
    assert [hub_size(count) for count in (0, 999, 1000, 99_999, 10**6, 10**12 - 1, 10**12)] == [
        "n<1K", "n<1K", "1K<n<10K", "10K<n<100K", "1M<n<10M", "100B<n<1T", "n>1T",
    ]  # fmt: skip


HOSTILE = ["a|b", "*x* _y_ [z](http://w)", "<script>`${1}</script>", "# head", "a `` b", "`", "tail\\", "two\nlines"]


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_stay_texts(text: str) -> None:
    shown = table(["name", "code"], [[plain(text), code(text)]])
    assert cells(shown) == [["name", "code"], [" ".join(text.split())] * 2]
    assert "<script>" not in MarkdownIt("commonmark", {"html": True}).render(plain(text))


def test_long_lists_of_settings_are_cut() -> None:
    shown = settings_line({"words": [f"w{n}" for n in range(40)], "least": 2, "most": None})
    assert shown.endswith('"w11", and 28 more]`, `least: 2`')


def test_a_census_counts_what_a_loop_counts() -> None:
    draw = random.Random(7)
    rows: list[dict[str, Any]] = [
        {
            "text": "ä" * draw.choice([0, 1, 2, 3, 4, 7, 8, 1023, 1024]),
            "source": draw.choice("ab"),
            "language": draw.choice(["de", "en", None]),
            "license": draw.choice(["MIT", None]),
            "metadata": draw.choice(
                ['{}', '{"date":"2020-01-03"}', '{"date":"2019"}', '{"date":"3 May"}', '{"date":"2021-02-03T04:05"}',
                 '{"fetched":"2022-02-02","update":"2030"}', '{"title":"\\"date\\":\\"1999\\" "}']
            ),
        }
        for _ in range(300)
    ]  # fmt: skip
    schema = pa.schema([(name, pa.string()) for name in rows[0]])
    parts = [pa.Table.from_pylist(rows[begin : begin + 70], schema) for begin in range(0, 300, 70)]
    found = add_up(map(count_documents_of, parts))
    for source in "ab":
        mine = [row for row in rows if row["source"] == source]
        census = found[source]
        assert census["documents"] == len(mine)
        assert census["characters"] * 2 == census["bytes"] == sum(2 * len(row["text"]) for row in mine)
        powers = Counter(str(1 << len(row["text"]).bit_length() >> 1) for row in mine)
        assert census["lengths"] == powers
        assert list(census["lengths"]) == sorted(census["lengths"], key=int)
        languages = Counter(row["language"] or "" for row in mine)
        assert {name: entry["documents"] for name, entry in census["languages"].items()} == languages
        assert [entry["documents"] for entry in census["languages"].values()] == sorted(languages.values())[::-1]
        dated = [row for row in mine if '"date":"2' in row["metadata"]]
        assert census["dates"] == {"documents": len(dated), "first": "2019", "last": "2021-02-03"}
        assert census["fetched"]["first"] == census["fetched"]["last"] == "2022-02-02"
    total = over_sources(found)
    assert total["documents"] == 300
    assert total["licenses"]["MIT"]["documents"] == sum(row["license"] == "MIT" for row in rows)
    assert over_sources({})["documents"] == 0
