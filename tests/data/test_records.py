from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkit.data.records import FileRecord, read_records
from llmkit.errors import DataError

ROWS = [{"a": "one", "b": 'say "hi",\nthere'}, {"a": "zwei ü", "b": ""}]


def values(records: list[FileRecord]) -> list[dict[str, object]]:
    assert [record.problem for record in records] == [None] * len(records)
    return [record.values for record in records]


def test_every_format_gives_the_same_records_with_their_places(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text("\n" + lines, encoding="utf-8")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (tmp_path / "rows.csv").write_text('a,b\none,"say ""hi"",\nthere"\nzwei ü,\n', encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write(lines)
    places = {
        "rows.jsonl": [":2", ":3"],
        "rows.json": [": item 1", ": item 2"],
        # The first row has a line break in it.
        "rows.csv": [":2", ":4"],
        "rows.parquet": [": row 1", ": row 2"],
        "rows.jsonl.gz": [":1", ":2"],
    }
    for name, expected in places.items():
        file = tmp_path / name
        records = list(read_records(file))
        assert values(records) == ROWS, name
        assert [record.place for record in records] == [f"{file}{place}" for place in expected]


def test_tsv_escapes_nothing_and_may_come_without_a_header(tmp_path: Path) -> None:
    file = tmp_path / "rows.tsv"
    file.write_text('a "quoted" word\t1\n" alone\t0\n', encoding="utf-8")
    assert values(list(read_records(file, header=False))) == [
        {"0": 'a "quoted" word', "1": "1"},
        {"0": '" alone', "1": "0"},
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes("\ufefftext,label\nx,y\n".encode())
    assert values(list(read_records(file))) == [{"text": "x", "label": "y"}]


@pytest.mark.parametrize(
    ("name", "text", "place", "problem"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": \n', ":2", "this is not JSON"),
        ("x.jsonl", '{"a": 1}\n["a"]\n', ":2", "an object with keys, not an array"),
        ("x.jsonl", "{}\nnull\n", ":2", "not null"),
        ("x.json", '[{"a": 1}, 3]', ": item 2", "not a number"),
        ("x.csv", "a,b\n1,2\n1,2,3\n", ":3", "3 cells where the first row has 2"),
        ("x.csv", 'a,b\n1,2\n1,"2"x\n', ":3", "cannot be read"),
    ],
)
def test_a_record_that_cannot_be_read_says_where_and_why_and_the_first_one_still_comes(
    tmp_path: Path, name: str, text: str, place: str, problem: str
) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    first, second = read_records(file)
    assert first.problem is None
    assert second.problem is not None and problem in second.problem
    assert second.place == f"{file}{place}"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.txt", b"hello", "does not tell its format"),
        ("x.json", b'{"a": 1}', "one array of objects"),
        ("x.json", b"[", "not JSON"),
        ("x.jsonl.gz", b"not gzip", "cannot be read"),
        ("x.parquet", b"not parquet", "cannot be read"),
        ("missing.jsonl", None, "no such file"),
        ("missing.parquet", None, "no such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None, problem: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        list(read_records(file))
    assert caught.value.where == str(file)
