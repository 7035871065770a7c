"""Files at URLs: the memory of fsspec stands for any store, a zip file for chained ones."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pydantic import TypeAdapter

from llmkit.data.sources.base import Broken, read_all
from llmkit.data.sources.config import AnySource
from llmkit.data.sources.files import check_files, find_files, is_url, name_of, open_bytes
from llmkit.data.sources.registry import open_reader
from llmkit.errors import DataError


@pytest.fixture
def bucket() -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pipe_file("/shelf/a.txt", b"one")
    store.pipe_file("/shelf/deep/b.txt.gz", gzip.compress(b"two"))
    store.pipe_file("/shelf/.hidden/c.txt", b"no")
    store.pipe_file("/shelf/d.jsonl", b'{"text": "row"}\n')
    yield store
    store.store.clear()


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("s3://b/a.txt", True),
        ("zip://a::b.zip", True),
        ("simplecache::s3://b", True),
        ("C.txt", False),
        ("/a:b", False),
    ],
)
def test_what_a_url_is(place: str, expected: bool) -> None:
    assert is_url(place) is expected


@pytest.mark.parametrize(
    ("place", "name"),
    [("s3://b/c/a.txt.gz", "a.txt.gz"), ("zip://x/a.txt::b.zip", "a.txt"), ("simplecache::s3://b/a.txt", "a.txt"),
     ("x/a.txt", "a.txt")],
)  # fmt: skip
def test_names(place: str, name: str) -> None:
    assert name_of(place) == name


def names(pattern: str) -> list[tuple[str, str]]:
    return [(file.name, open_bytes(file.path).read().decode()) for file in find_files([pattern], (".txt",))]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("memory://shelf", [("a.txt", "one"), ("deep/b.txt.gz", "two")]),
        ("memory://shelf/a.txt", [("a.txt", "one")]),
        ("memory://shelf/**/*.txt.gz", [("deep/b.txt.gz", "two")]),
        ("memory://shelf/*/b*", [("deep/b.txt.gz", "two")]),
        ("memory://shelf/nothing*", []),
        ("memory://nowhere", []),
    ],
)
def test_files_folders_and_patterns(bucket: Any, pattern: str, expected: list[tuple[str, str]]) -> None:
    assert names(pattern) == expected


def test_files_inside_of_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("x/a.txt", "one")
        archive.writestr("x/y/b.txt.gz", gzip.compress(b"two"))
    assert names(f"zip://x/**/*.txt*::{tmp_path}/texts.zip") == [("a.txt", "one"), ("y/b.txt.gz", "two")]
    assert names(f"zip://x/a.txt::{tmp_path}/texts.zip") == [("a.txt", "one")]


def test_a_file_that_changes_has_another_version(bucket: Any) -> None:
    (before,) = find_files(["memory://shelf/a.txt"], None)
    bucket.pipe_file("/shelf/a.txt", b"new")
    (after,) = find_files(["memory://shelf/a.txt"], None)
    assert before.size == after.size == 3
    assert before.version != after.version


def test_records_of_urls(bucket: Any) -> None:
    source = TypeAdapter(AnySource).validate_python({"kind": "jsonl", "files": ["memory://shelf"]})
    assert [(record.text, record.path) for record in read_all(open_reader(source))] == [("row", "d.jsonl:1")]


def test_what_a_network_keeps_from_us_is_no_broken_record(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = open_reader(TypeAdapter(AnySource).validate_python({"kind": "text", "files": ["memory://shelf"]}))
    pieces = reader.slices()

    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("the line is dead")

    monkeypatch.setattr(type(bucket), "_open", unreachable)
    with pytest.raises(DataError, match="ConnectionError: the line is dead"):
        [record for piece in pieces for record in reader.read(piece)]


def test_schemes_that_nothing_knows_are_findings(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_text("no archive")
    found = list(check_files(["nosuch://a.txt", f"zip://*.txt::{tmp_path}/no.zip"], (".txt",)))
    assert [finding.key for finding in found] == ["files.0", "files.1"]
    assert "Protocol not known" in found[0].message
    assert "not a zip file" in found[1].message


def test_a_damaged_member_of_an_archive_is_a_broken_record(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "damaged later on")
        archive.writestr("b.txt", "whole")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"damaged")] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    settings = {"kind": "text", "files": [f"zip://*.txt::{tmp_path}/a.zip"]}
    broken, whole = read_all(open_reader(TypeAdapter(AnySource).validate_python(settings)))
    assert isinstance(broken, Broken)
    assert "Bad CRC-32" in broken.detail
    assert whole.text == "whole"
