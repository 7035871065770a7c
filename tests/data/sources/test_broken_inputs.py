"""Whatever is broken is one record with its place; everything around it is read."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import TypeAdapter

from llmkit.data.sources.base import Broken, read_all
from llmkit.data.sources.config import AnySource
from llmkit.data.sources.registry import open_reader

TEXTS = [f"Text number {number}." for number in range(2000)]


def read(kind: str, path: Path, **settings: Any) -> tuple[list[str], list[Broken]]:
    source = TypeAdapter(AnySource).validate_python({"kind": kind, "files": [str(path)], **settings})
    records = list(read_all(open_reader(source)))
    broken = [record for record in records if isinstance(record, Broken)]
    for record in broken:
        record.text.encode()  # the copy can be written
    return [record.text for record in records if not isinstance(record, Broken)], broken


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not JSON: Expecting property name"),
        (b"[1, 2]", "a JSON array, not an object"),
        (b"3", "a JSON number, not an object"),
        (b"null", "a JSON value, not an object"),
        (b'{"body": "x"}', "the column `text` is not there"),
        (b'{"text": null}', "the column `text` is empty"),
        (b'{"text": ["x"]}', "the column `text` holds list, not text"),
        (b'{"text": "bad \xff byte"}', "character 14: the byte 0xff is not valid"),
        (b'{"text": "half \\ud83d pair"}', "character 5: half of a surrogate pair (U+D83D)"),
        (b'{"text": "low \\udcff"}', "character 4: the byte 0xff is not valid"),
        (b'{"text": "ok", "extra": 1e999999}x', "not JSON: Extra data"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": 1' + b"0" * 5000 + b"}", "not JSON: Exceeds the limit"),
        (b"\x00\x01\x02", "not JSON"),
    ],
)
def test_broken_lines_of_jsonl(tmp_path: Path, line: bytes, problem: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    kept, (broken,) = read("jsonl", file)
    assert kept == ["before", "after"]
    assert broken.path == "a.jsonl"
    assert broken.detail.startswith("line 2: ")
    assert problem in broken.detail


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (b"a,b,c", "3 cells where the first row has 2"),
        (b"a", "1 cells where the first row has 2"),
        (b'"a"b,c', "expected after"),
        (b"bad \xff byte,x", "the byte 0xff is not valid"),
    ],
)
def test_broken_rows_of_csv(tmp_path: Path, row: bytes, problem: str) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"text,key\nbefore,1\n" + row + b"\nafter,2\n")
    kept, (broken,) = read("csv", file)
    assert kept == ["before", "after"]
    assert broken.detail.startswith("line 3: ")
    assert problem in broken.detail


def test_a_table_whose_names_cannot_be_read_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\xff\nnot a name\none\n")
    (tmp_path / "b.csv").write_bytes(b"text\nfine\n")
    kept, (broken,) = read("csv", tmp_path)
    assert kept == ["fine"]
    assert "the file's first row, with the names, cannot be read: line 1" in broken.detail


def test_a_quote_that_never_ends(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\nbefore\n"opened\nand\nnever closed\n')
    kept, (broken,) = read("csv", tmp_path)
    assert kept == ["before"]
    assert broken.detail == "line 3: unexpected end of data"


@pytest.mark.parametrize("kind", ["text", "html"])
def test_undecodable_files(tmp_path: Path, kind: str) -> None:
    ending = {"text": "txt", "html": "html"}[kind]
    (tmp_path / f"a.{ending}").write_bytes(b"good")
    (tmp_path / f"b.{ending}").write_bytes(b"not \xff good")
    (tmp_path / f"c.{ending}").write_bytes(b"")
    kept, (broken,) = read(kind, tmp_path)
    assert kept == ["good", ""]
    assert (broken.path, broken.text) == (f"b.{ending}", "not \\xff good")
    assert broken.detail == "byte 4: not valid utf-8 (invalid start byte)"


@pytest.mark.parametrize("kind", ["text", "html", "jsonl", "csv", "parquet"])
def test_empty_files_hold_nothing(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "empty"
    file.write_bytes(b"")
    kept, broken = read(kind, file)
    assert (kept, len(broken)) == (([""], 0) if kind in ("text", "html") else ([], int(kind == "parquet")))


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_truncated_archives_give_what_is_whole(tmp_path: Path, compression: str) -> None:
    lines = "".join(f'{{"text": "{text}"}}\n' for text in TEXTS).encode()
    # Small blocks, so that the part before the cut can be decompressed.
    if compression == "gz":
        data = gzip.compress(lines, compresslevel=0)
    else:
        data = zstandard.compress(lines[: len(lines) // 2]) + zstandard.compress(lines[len(lines) // 2 :])
    file = tmp_path / f"a.jsonl.{compression}"
    file.write_bytes(data[: len(data) * 3 // 4])
    kept, broken = read("jsonl", file)
    assert kept == TEXTS[: len(kept)]
    assert len(kept) > 100
    assert "cannot be read on" in broken[-1].detail
    assert broken[-1].detail.startswith(f"after line {len(kept) + len(broken) - 1}")


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "html"])
@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_archives_that_are_none(tmp_path: Path, kind: str, compression: str) -> None:
    file = tmp_path / f"a.{kind}.{compression}"
    file.write_bytes(b"this was never compressed")
    kept, (broken,) = read(kind, file)
    assert kept == []
    assert "cannot be read" in broken.detail


def test_an_archive_with_a_flipped_bit(tmp_path: Path) -> None:
    data = bytearray(gzip.compress("\n".join(TEXTS).encode()))
    data[len(data) // 2] ^= 0x10
    (tmp_path / "a.txt.gz").write_bytes(data)
    kept, (broken,) = read("text", tmp_path)
    assert kept == []
    assert "the file cannot be read" in broken.detail


def test_files_that_go_away_and_folders_in_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b.txt").mkdir()
    (tmp_path / "c.txt").write_text("here")
    assert read("text", tmp_path) == (["here"], [])


def test_damaged_parquet(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), file, row_group_size=500, compression="none", use_dictionary=False)
    data = bytearray(file.read_bytes())
    file.write_bytes(data[:-100])
    kept, (broken,) = read("parquet", file)
    assert kept == []
    assert broken.detail.startswith("the file cannot be read: ")
    # The page header in the third group of rows.
    start = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(2).column(0).data_page_offset
    data[start : start + 8] = b"\xff" * 8
    file.write_bytes(data)
    kept, (broken,) = read("parquet", file)
    assert kept == TEXTS[:1000] + TEXTS[1500:]
    assert broken.detail.startswith("rows 1001 to 1500: cannot be read: ")


def test_parquet_rows_without_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    kept, (broken,) = read("parquet", tmp_path)
    assert kept == ["a", "b"]
    assert broken.detail == "row 2: the column `text` is empty"
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    kept, (first, second) = read("parquet", tmp_path)
    assert (kept, first.detail, second.text) == ([], "row 1: the column `text` holds int, not text", '{"text": 2}')


def test_metadata_that_is_no_text_makes_a_record_broken(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine", "title": "\\ud800"}\n')
    kept, (broken,) = read("jsonl", tmp_path, metadata=["title"])
    assert kept == []
    assert "surrogate" in broken.detail
