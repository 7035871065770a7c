"""Every format gives the same documents, plain and compressed."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pyarrow import feather
from pydantic import TypeAdapter

from llmkit.data.sources.base import Reader, read_all
from llmkit.data.sources.config import AnySource
from llmkit.data.sources.registry import open_reader
from llmkit.store.documents import Document

ROWS = [
    {"body": "Plain text.", "key": "a1", "page": 1, "tags": "x"},
    {"body": 'Quotes "", commas, and\nlines;\ttabs\u2028too.', "key": "a2", "page": 2, "tags": "é"},
    {"body": "日本語 \U0001f600", "key": "a3", "page": 3, "tags": ""},
]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def reader(**settings: Any) -> Reader:
    return open_reader(TypeAdapter(AnySource).validate_python(settings))


def documents(**settings: Any) -> list[Document]:
    found = list(read_all(reader(**settings)))
    assert all(isinstance(record, Document) for record in found), found
    return [record for record in found if isinstance(record, Document)]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_rows_become_documents(tmp_path: Path, kind: str, compression: str) -> None:
    data = jsonl(ROWS) if kind == "jsonl" else table(ROWS, "\t" if kind == "tsv" else ",")
    file = tmp_path / f"rows.{kind}{compression}"
    file.write_bytes(COMPRESS[compression](data))
    found = documents(
        kind="jsonl" if kind == "jsonl" else "csv", files=[str(file)], text="body", id="key", metadata=["page", "tags"],
        name="planted", license="MIT", language="en",
    )  # fmt: skip
    lines = {"jsonl": [1, 2, 3], "csv": [2, 3, 5], "tsv": [2, 3, 5]}[kind]
    assert found == [
        Document(
            "", row["body"], "planted", f"{file.name}:{line}", "MIT", "en",
            {"id": row["key"], "page": str(row["page"]), "tags": row["tags"]},
        )
        for row, line in zip(ROWS, lines, strict=True)
    ]  # fmt: skip


def test_parquet_rows_become_documents(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([*ROWS, {"body": "no more", "key": None}]), tmp_path / "rows.parquet")
    found = documents(kind="parquet", files=[str(tmp_path)], text="body", id="key", metadata=["page"])
    assert [(d.text, d.path, d.metadata) for d in found] == [
        *(
            (row["body"], f"rows.parquet:{n}", {"id": row["key"], "page": str(row["page"])})
            for n, row in enumerate(ROWS, 1)
        ),
        ("no more", "rows.parquet:4", {}),
    ]


def test_values_that_are_no_text_are_kept_as_json(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "t", "m": {"b": [1, "é"], "a": null}, "n": null, "f": 0.5}\n')
    (found,) = documents(kind="jsonl", files=[str(tmp_path)], metadata=["m", "n", "f", "absent"])
    assert found.metadata == {"m": '{"a": null, "b": [1, "é"]}', "f": "0.5"}


KNOWN = {"date": "day", "language_column": "lang", "license_column": "terms"}
MOMENT = datetime.datetime(2024, 5, 1, 23, 59, tzinfo=datetime.UTC)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "arrow"])
def test_date_language_and_licence_of_each_row(tmp_path: Path, kind: str) -> None:
    """Days are written by ISO 8601 whatever the column holds; what the source says goes before what its rows say."""
    rows: list[dict[str, Any]] = [
        {"text": "one", "day": "2024-05-01T23:59:00Z", "lang": "de", "terms": "MIT"},
        {"text": "two", "day": "May 1968", "lang": None, "terms": None},
    ]
    typed = [{**rows[0], "day": MOMENT}, {**rows[1], "day": None}]
    name, place = f"a.{kind}", tmp_path
    if kind in ("jsonl", "csv"):
        (place / name).write_bytes(jsonl(rows) if kind == "jsonl" else table(rows, ","))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(typed), place / name)
    else:
        feather.write_feather(pa.Table.from_pylist(typed), str(place / name))
    one, two = documents(kind=kind, files=[str(tmp_path)], **KNOWN)
    assert (one.metadata, one.language, one.license) == ({"date": "2024-05-01"}, "de", "MIT")
    dated = {} if kind in ("parquet", "arrow") else {"date": "May 1968"}
    assert (two.metadata, two.language, two.license) == (dated, None, None)
    one, two = documents(kind=kind, files=[str(tmp_path)], language="fr", license="CC0-1.0", **KNOWN)
    assert (one.language, one.license, two.language) == ("fr", "CC0-1.0", "fr")


def test_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,day\nx,y\n")
    found = reader(kind="csv", files=[str(tmp_path)], **KNOWN).check()
    assert [finding.key for finding in found] == ["language_column", "license_column"]


def test_a_metadata_column_may_be_called_id(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "t", "id": 7}\n')
    (found,) = documents(kind="jsonl", files=[str(tmp_path)], id="id")
    assert found.metadata == {"id": "7"}


@pytest.mark.parametrize("compression", COMPRESS)
def test_text_files_are_documents(tmp_path: Path, compression: str) -> None:
    for name, text in (("b.txt", "\ufeffzwei\r\n"), ("a.md", "# eins ☃")):
        (tmp_path / f"{name}{compression}").write_bytes(COMPRESS[compression](text.encode()))
    found = documents(kind="text", files=[str(tmp_path)])
    assert [(d.path, d.text) for d in found] == [
        (f"a.md{compression}", "# eins ☃"),
        (f"b.txt{compression}", "zwei\r\n"),
    ]


def test_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Grüße".encode("latin-1"))
    (tmp_path / "b.jsonl").write_bytes('{"text": "Grüße"}\n{"text": "zwei"}\n'.encode("utf-16"))
    (tmp_path / "c.csv").write_bytes("text\nGrüße\n".encode("cp1252"))
    assert [d.text for d in documents(kind="text", files=[str(tmp_path)], encoding="latin-1")] == ["Grüße"]
    found = documents(kind="jsonl", files=[str(tmp_path)], encoding="utf-16")
    assert [d.text for d in found] == ["Grüße", "zwei"]
    assert [d.text for d in documents(kind="csv", files=[str(tmp_path)], encoding="cp1252")] == ["Grüße"]


@pytest.mark.parametrize("compression", COMPRESS)
def test_web_pages_are_documents(tmp_path: Path, compression: str) -> None:
    page = "<html lang=de><title>Über  uns</title><nav>Menü</nav><p>Grüße</p><p>zwei</p></html>"
    (tmp_path / f"a.html{compression}").write_bytes(COMPRESS[compression](page.encode()))
    (found,) = documents(kind="html", files=[str(tmp_path)])
    assert (found.text, found.language, found.metadata) == ("Grüße\n\nzwei", "de", {"title": "Über uns"})
    (said,) = documents(kind="html", files=[str(tmp_path)], language="de-AT")
    assert said.language == "de-AT"


def test_blank_lines_are_no_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"text": "one"}\n  \n{"text": "two"}\n\n')
    (tmp_path / "a.csv").write_text("text\n\none\n\n\ntwo\n")
    assert [d.path for d in documents(kind="jsonl", files=[str(tmp_path)])] == ["a.jsonl:2", "a.jsonl:4"]
    assert [d.path for d in documents(kind="csv", files=[str(tmp_path)])] == ["a.csv:3", "a.csv:6"]


def test_long_cells_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "x" * 300_000 + "\n")
    assert len(documents(kind="csv", files=[str(tmp_path)])[0].text) == 300_000


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_columns_that_are_not_there_are_findings(tmp_path: Path, kind: str) -> None:
    rows = [{"texts": "a", "page": 1}]
    file = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_bytes(jsonl(rows) if kind == "jsonl" else table(rows, ","))
    found = {f.key: f for f in reader(kind=kind, files=[str(file)], metadata=["page", "pages"]).check()}
    assert set(found) == {"text", "metadata.1"}
    assert "no column `text`" in found["text"].message
    assert "Did you mean `texts`?" in (found["text"].hint or "")
    assert found["metadata.1"].severity == ("warning" if kind == "jsonl" else "error")
    assert list(reader(kind=kind, files=[str(file)], text="texts", metadata=["page"]).check()) == []


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "parquet", "html"])
def test_a_pattern_that_matches_nothing_is_a_finding(tmp_path: Path, kind: str) -> None:
    (finding,) = reader(kind=kind, files=[f"{tmp_path}/*.none"]).check()
    assert (finding.key, finding.severity) == ("files.0", "error")


def test_files_of_another_format_are_findings(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no parquet")
    (finding,) = reader(kind="parquet", files=[str(tmp_path)]).check()
    assert "is no Parquet file" in finding.message
    (tmp_path / "b.jsonl").write_text('["a"]\n')
    (finding,) = reader(kind="jsonl", files=[f"{tmp_path}/b.jsonl"]).check()
    assert "line 1: a JSON array, not an object" in finding.message
