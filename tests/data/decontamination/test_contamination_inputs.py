"""What can be named in `against`: files of every format, what stages have made, and evaluations."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from decontamination_support import against, measure, named, write_rows

from llmkit.config.base import Facts
from llmkit.data.config import DataConfig
from llmkit.data.decontamination import texts
from llmkit.errors import ArtifactError, DataError
from llmkit.store.documents import Document, document_id, write_documents
from llmkit.store.splits import Split

ONE = "A quick brown fox jumps over the lazy dog and runs away into the dark wood."
TWO = "The seventh planet, counted from the sun, turns lying on its side; nobody knows why, yet."
OTHER = "Nothing of what stands here is in any of the files that models are measured on, of course."


def rows_with(key: str) -> list[dict[str, Any]]:
    return [{"id": "1", key: ONE}, {"id": "2", key: TWO}]


def write_json(file: Path) -> None:
    file.write_text(json.dumps(rows_with("prompt")))


def write_csv(file: Path) -> None:
    file.write_text(f'id,sentence\n1,{ONE}\n2,"{TWO}"\n')


def write_tsv(file: Path) -> None:
    file.write_text(f"id\tsentence\n1\t{ONE}\n2\t{TWO}\n")


def write_parquet(file: Path) -> None:
    choices = [{"text": ["no", ONE], "label": 1}, {"text": [TWO], "label": 0}]
    pq.write_table(pa.table({"n": [1, 2], "choices": choices}), file)


def write_messages(file: Path) -> None:
    asked = [{"role": "user", "content": "What?"}]
    write_rows(file, [{"messages": [*asked, {"role": "assistant", "content": text}]} for text in (ONE, TWO)])


def write_compressed(file: Path) -> None:
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows_with("t")).encode()))


def write_tags(file: Path) -> None:
    write_rows(file, [{"tokens": text.split(), "labels": ["O"] * len(text.split())} for text in (ONE, TWO)])


FILES: list[tuple[str, Callable[[Path], object], str]] = [
    ("a.json", write_json, ": item {}"),
    ("a.csv", write_csv, ":{plus}"),
    ("a.tsv", write_tsv, ":{plus}"),
    ("a.parquet", write_parquet, ": row {}"),
    ("a.jsonl", write_messages, ":{}"),
    ("a.jsonl.gz", write_compressed, ":{}"),
    ("tags.ndjson", write_tags, ":{}"),
]


@pytest.mark.parametrize(("name", "write", "place"), FILES, ids=[name for name, _, _ in FILES])
def test_every_text_of_every_row_counts(tmp_path: Path, name: str, write: Callable[[Path], object], place: str) -> None:
    write(tmp_path / name)
    found = measure(against(tmp_path / "index", named(tmp_path / name)), [OTHER, TWO, ONE])["found"]
    starts = [f"{tmp_path / name}{place.format(row, plus=row + 1)}" for row in (2, 1)]
    assert found == [
        None,
        f'{starts[0]}: "The seventh planet, counted from the sun, turns lying on its side; nobody"',
        f'{starts[1]}: "A quick brown fox jumps over the lazy dog and runs away into"',
    ]


def test_plain_text_is_one_text_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [" ".join(f"w{line}x{word}" for word in range(7)) for line in range(40)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    (tmp_path / "b.md").write_text("# Nine words are no n-gram but a text\n")
    whole = [" ".join(lines), lines[3], f"{lines[7]} {lines[8]}", "nine words are no n gram but a text"]
    expected = [280 - 12, 0, 2, 1]
    assert measure(against(tmp_path / "1", named(tmp_path)), whole)["matches"] == expected
    # Read in pieces of a line, the n-grams from one to the next are there all the same.
    monkeypatch.setattr(texts, "_PIECE", 10)
    found = measure(against(tmp_path / "2", named(tmp_path)), whole)
    assert found["matches"] == expected
    assert found["found"][3].startswith(f'{tmp_path}/b.md: "nine')


def test_folders_and_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    (folder / "deep").mkdir(parents=True)
    write_rows(folder / "deep/a.jsonl", [{"q": ONE}])
    write_csv(folder / "b.csv")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    found = measure(against(tmp_path / "1", named(folder)), [ONE, TWO])["found"]
    assert [name.partition(': "')[0] for name in found] == [f"{folder}/b.csv:2", f"{folder}/b.csv:3"]
    found = measure(against(tmp_path / "2", named(f"{folder}/**/*.jsonl")), [ONE, TWO])["found"]
    assert [name and name.partition(': "')[0] for name in found] == [f"{folder}/deep/a.jsonl:1", None]
    url = f"file://{folder}/deep/a.jsonl"
    found = measure(against(tmp_path / "3", named(url)), [ONE])["found"]
    assert found[0].startswith(f"{url}:1: ")


def test_what_stages_have_made_is_taken_where_it_is_held_out(tmp_path: Path) -> None:
    examples = tmp_path / "chat"
    examples.mkdir()
    for split, text in (("train", OTHER), ("validation", ONE), ("test", TWO)):
        write_rows(examples / f"{split}.jsonl", [{"id": "1", "prompt": [{"role": "user", "content": text}]}])
    names = [f"chat/{split}.jsonl:1" for split in ("validation", "test")]
    filter = against(tmp_path / "1", named("chat", "examples", examples))
    found = measure(filter, [OTHER, ONE, TWO])["found"]
    assert [name and name.partition(': "')[0] for name in found] == [None, *names]

    pages: list[tuple[Split, str]] = [("train", OTHER), ("validation", ONE), ("test", TWO)]
    documents = [
        Document(document_id(text), text, "s", f"page {number}", split=split)
        for number, (split, text) in enumerate(pages)
    ]
    write_documents(tmp_path / "books", documents)
    filter = against(tmp_path / "2", named("books", "documents", tmp_path / "books"))
    found = measure(filter, [OTHER, ONE, TWO])["found"]
    assert [name and name.partition(': "')[0] for name in found] == [
        None, "books/validation: page 1", "books/test: page 2",
    ]  # fmt: skip


def test_the_first_of_several_inputs_is_named(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "first.jsonl", [{"q": OTHER}, {"q": TWO}])
    second = write_rows(tmp_path / "second.jsonl", [{"q": TWO}, {"q": ONE}])
    found = measure(against(tmp_path / "index", named(first), named(second)), [ONE, TWO])["found"]
    assert [name.partition(': "')[0] for name in found] == [f"{second}:2", f"{first}:2"]


def refused(tmp_path: Path, file: str, content: bytes) -> str:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError) as caught:
        against(tmp_path / "index", named(tmp_path / file))
    return str(caught.value).replace(str(tmp_path), "HERE")


def test_what_cannot_be_read_is_refused_in_words(tmp_path: Path) -> None:
    good = json.dumps({"q": ONE}).encode()
    assert "HERE/a.jsonl:2: this is not JSON" in refused(tmp_path, "a.jsonl", good + b"\n{broken\n")
    bad = refused(tmp_path, "b.jsonl", good + b'\n{"q": "caf\xe9"}\n')
    assert bad == "HERE/b.jsonl:2: a text here is broken: the byte 0xe9 is not valid in the file's encoding."
    assert "HERE/c.txt: a text here is broken: the byte 0xff" in refused(tmp_path, "c.txt", b"ok\n\xff")
    assert "HERE/d.csv:3: the row has 1 cells" in refused(tmp_path, "d.csv", b"a,b\n1,2\n3\n")
    assert "HERE/e.json: this is not JSON" in refused(tmp_path, "e.json", b"{")
    assert "HERE/f.parquet: the file cannot be read" in refused(tmp_path, "f.parquet", b"PAR1")
    unknown = refused(tmp_path, "g.xlsx", b"PK")
    assert unknown.startswith("HERE/g.xlsx: the file's name does not tell its format. Endings: .jsonl, ")
    assert "HERE/h.jsonl.gz: the file cannot be read" in refused(tmp_path, "h.jsonl.gz", gzip.compress(good)[:20])
    short = refused(tmp_path, "i.jsonl", b'{"q": "What is it?"}')
    assert short.startswith("decontamination.against.0: `HERE/i.jsonl` has no text of 8 words or more")


def test_folders_without_texts_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: there is no file here whose texts can be read\. Endings: \.jsonl"):
        against(tmp_path / "index", named(tmp_path / "empty"))
    with pytest.raises(DataError, match="`chat` has no text held out of 8 words or more"):
        for split in ("validation", "test"):
            (tmp_path / "empty" / f"{split}.jsonl").touch()
        against(tmp_path / "index", named("chat", "examples", tmp_path / "empty"))
    with pytest.raises(ArtifactError, match="there are no documents here"):
        against(tmp_path / "index", named("books", "documents", tmp_path / "empty"))


def test_deep_rows_and_long_names_do_no_harm(tmp_path: Path) -> None:
    deep: Any = ONE
    for _ in range(400):
        deep = [deep]
    found = against(tmp_path / "index", named(write_rows(tmp_path / "a.jsonl", [{"q": deep}])))
    assert measure(found, [ONE])["matches"] == [len(ONE.split()) - 12]


def test_facts_tell_beforehand_that_nothing_is_held_out() -> None:
    config = DataConfig.model_validate({
        "sources": [{"kind": "text", "files": ["a"]}],
        "decontamination": {"against": ["chat", "books", "file.jsonl"]},
    })  # fmt: skip
    facts = {needed.key: Facts("file") for needed in config.inputs()}
    facts["decontamination.against.0"] = Facts("examples", {"splits": ["train"]})
    facts["decontamination.against.1"] = Facts("documents", {"splits": ["train", "test"]})
    (finding,) = config.check(facts)
    assert finding.key == "decontamination.against.0"
    assert "`chat` holds nothing out" in finding.message
