from __future__ import annotations

import bz2
import gzip
import lzma
import random
import sys
import zlib
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard
from warc_files import members, page, response, warc_record

from llmkit.data.sources.base import Broken, Record, Slice, read_all
from llmkit.data.sources.config import WarcSource
from llmkit.data.sources.warc import WarcReader
from llmkit.errors import MissingDependencyError
from llmkit.store.documents import Document


def read(path: Path, **settings: Any) -> list[Record]:
    return list(read_all(WarcReader(WarcSource.model_validate({"files": [str(path)], **settings}))))


def texts(records: list[Record]) -> list[str]:
    assert all(isinstance(record, Document) for record in records)
    return [record.text for record in records]


def test_answers_and_what_goes_with_them(tmp_path: Path) -> None:
    latin = "Content-Type: text/html; charset=iso-8859-1"
    zipped = gzip.compress("<title>Café</title><p>Un café.</p>".encode("latin-1"))
    records = [
        warc_record("warcinfo", "", b"software: test\r\n"),
        warc_record("request", "http://example.org/a", b"GET /a HTTP/1.1\r\n\r\n"),
        response("http://example.org/a", zipped, latin, "Content-Encoding: gzip"),
        warc_record("metadata", "http://example.org/a", b"fetchTimeMs: 12\r\n"),
        response(
            "http://example.org/b",
            b"6\r\n<p>Chu\r\n8\r\nnked</p>\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked",
            "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT",
        ),
        response("http://example.org/c", b"Plain <b>text</b>.", "Content-Type: text/plain"),
        warc_record("revisit", "http://example.org/a", b""),
        warc_record("resource", "http://example.org/d", b"<p>Kept by itself.</p>", "Content-Type: text/html"),
        response("http://example.org/e", b"<p>Decoded already.</p>", "Content-Encoding: gzip"),
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    found = read(tmp_path, license="CC0-1.0")
    assert texts(found) == ["Un café.", "Chunked", "Plain <b>text</b>.", "Kept by itself.", "Decoded already."]
    assert [record.path for record in found] == [f"http://example.org/{name}" for name in "abcde"]
    first, second = found[:2]
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert first.license == "CC0-1.0"
    place = len(records[0]) + len(records[1])
    assert first.metadata == {"record": f"a.warc@{place}", "fetched": "2024-01-02", "title": "Café"}
    assert second.metadata["date"] == "2015-10-21"


def test_conversions_with_their_languages(tmp_path: Path) -> None:
    kind, languages = "Content-Type: text/plain", "WARC-Identified-Content-Language: fra,eng"
    record = warc_record("conversion", "http://example.org/a", b"Un texte\net un autre.", kind, languages)
    (tmp_path / "a.warc.wet.gz").write_bytes(members([record]))
    (found,) = read(tmp_path)
    assert isinstance(found, Document)
    assert found.text == "Un texte\net un autre."
    assert found.metadata["languages"] == "fra,eng"


PAGE = b"<p>Some text." + random.Random(1).randbytes(100).hex().encode()
ZIPPED, BROTLI = gzip.compress(PAGE), brotli.compress(PAGE)


@pytest.mark.parametrize(
    ("body", "encodings"),
    [
        (zlib.compress(b"<p>Text."), "deflate"),
        (zlib.compress(b"<p>Text.")[2:-4], "deflate"),
        (brotli.compress(b"<p>Text."), "br"),
        (zstandard.compress(b"<p>Text."), "zstd"),
        (gzip.compress(b"<p>Te") + gzip.compress(b"xt.") + b"junk", "x-gzip"),
        (gzip.compress(brotli.compress(b"<p>Text.")), "br, gzip"),
        (b"<p>Text.", "identity"),
    ],
)
def test_compressed_answers(tmp_path: Path, body: bytes, encodings: str) -> None:
    (tmp_path / "a.warc").write_bytes(response("http://a", body, f"Content-Encoding: {encodings}"))
    assert texts(read(tmp_path)) == ["Text."]


def test_the_beginning_of_a_page_is_one_where_the_archive_says_so(tmp_path: Path) -> None:
    kind = "Content-Type: application/http; msgtype=response"
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n"
    record = warc_record("response", "http://a", http + ZIPPED[:-60], kind, "WARC-Truncated: length")
    (tmp_path / "a.warc").write_bytes(record)
    (found,) = read(tmp_path)
    assert isinstance(found, Document)
    assert found.text.startswith("Some text.")
    assert found.metadata["truncated"] == "length"


@pytest.mark.parametrize(
    ("answer", "reason", "detail"),
    [
        (response("http://a", b"<p>Gone.", status="404 Not Found"), "no text", "the answer is no page (status 404)"),
        (response("http://a", b"\x89PNG", "Content-Type: image/png"), "no text", "its type is image/png"),
        (response("http://a", b"<p>\xff\xfe"), "encoding", "byte 3: not valid utf-8"),
        (response("http://a", b"<p>" + b"x" * 2000), "too large", "bytes, more than 1,024"),
        (
            response("http://a", gzip.compress(b"<p>" + b"0" * 500_000), "Content-Encoding: gzip"),
            "too large",
            "the page is longer than 1,024 bytes",
        ),
        (response("http://a", b"zz\r\n", "Transfer-Encoding: chunked"), "malformed", "cannot be decoded"),
        (response("http://a", b"??", "Content-Encoding: br"), "malformed", "cannot be decoded"),
        (
            response("http://a", BROTLI[:-20], "Content-Encoding: br"),
            "malformed",
            "decoded: the compressed data are cut",
        ),
        (
            response("http://a", ZIPPED[:-20], "Content-Encoding: gzip"),
            "malformed",
            "decoded: the compressed data are cut",
        ),
        (response("http://a", ZIPPED, "Content-Encoding: zstd"), "malformed", "cannot be decoded"),
        (response("http://a", ZIPPED, "Content-Encoding: br"), "malformed", "cannot be decoded"),
        (
            response("http://a", ZIPPED, "Content-Encoding: rot13"),
            "malformed",
            "decoded: compressed as `rot13`",
        ),
        (
            response("http://a", brotli.compress(b"0" * 100_000_000), "Content-Encoding: br"),
            "too large",
            "the page is longer than 1,024 bytes",
        ),
        (
            warc_record("response", "http://a", b"\x00\x01", "Content-Type: application/http"),
            "malformed",
            "the answer does not begin as HTTP does",
        ),
        (warc_record("response", "dns:a", b"20240101", "Content-Type: text/dns"), "no text", "its type is text/dns"),
        (
            warc_record("continuation", "http://a", b"<p>", "Content-Type: text/html", "WARC-Segment-Number: 2"),
            "malformed",
            "parts are not joined",
        ),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_records_that_are_no_pages(tmp_path: Path, answer: bytes, reason: str, detail: str, packed: bool) -> None:
    records = [page(1), answer, page(2)]
    name = "a.warc.gz" if packed else "a.warc"
    (tmp_path / name).write_bytes(members(records) if packed else b"".join(records))
    first, broken, last = read(tmp_path, max_bytes=1024)
    assert (first.text, last.text) == ("Page 1.", "Page 2.")
    assert isinstance(broken, Broken)
    assert (broken.reason, broken.path) == (reason, name)
    place = len(members(records[:1])) if packed else len(records[0])
    assert broken.detail.startswith(f"byte {place:,}: ")
    assert detail in broken.detail


@pytest.mark.parametrize(
    ("ending", "pack"),
    [
        ("", b"".join),
        (".gz", members),
        (".gz", lambda records: gzip.compress(b"".join(records))),
        (".bz2", lambda records: bz2.compress(b"".join(records))),
        (".xz", lambda records: lzma.compress(b"".join(records))),
        (".zst", lambda records: b"".join(map(zstandard.compress, records))),
    ],
)
def test_every_compression(tmp_path: Path, ending: str, pack: Any) -> None:
    (tmp_path / f"a.warc{ending}").write_bytes(pack([page(number) for number in range(20)]))
    assert texts(read(tmp_path)) == [f"Page {number}." for number in range(20)]


@pytest.mark.parametrize("form", ["plain", "members", "blocks"])
def test_parts_of_large_files_are_the_whole(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.data.sources.warc.SLICE_BYTES", 3000)
    monkeypatch.setattr("llmkit.data.sources.base.SLICE_BYTES", 3000)
    draw = random.Random(1)
    records = [page(number, draw.choice((0, 50, 8000))) for number in range(60)]
    whole = b"".join(records)
    data = {
        "plain": whole,
        "members": b"".join(gzip.compress(record, 0) for record in records),
        # Members of equal size, as block compressors make them, in which records begin anywhere.
        "blocks": b"".join(gzip.compress(whole[start : start + 700], 0) for start in range(0, len(whole), 700)),
    }[form]
    (tmp_path / ("a.warc" if form == "plain" else "a.warc.gz")).write_bytes(data)
    reader = WarcReader(WarcSource(files=[str(tmp_path)]))
    pieces = reader.slices()
    assert len(pieces) > 5
    found = [list(reader.read(piece)) for piece in pieces]
    assert [record.path for part in found for record in part] == [f"http://example.org/{n}" for n in range(60)]
    assert [record.text for part in found for record in part] == [record.text for record in read_all(reader)]
    if form != "blocks":
        assert sum(bool(part) for part in found) > 5


def test_a_page_that_holds_an_archive_is_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.data.sources.warc.SLICE_BYTES", 1000)
    monkeypatch.setattr("llmkit.data.sources.base.SLICE_BYTES", 1000)
    nested = response("http://example.org/nested", b"".join(page(n) for n in range(10, 30)), "Content-Type: text/plain")
    (tmp_path / "a.warc").write_bytes(page(1) + nested + page(2))
    assert [record.path.rpartition("/")[2] for record in read(tmp_path)] == ["1", "nested", "2"]


def test_a_missing_library_is_told_before_and_during(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.warc").write_bytes(page(1))
    monkeypatch.setitem(sys.modules, "fastwarc", None)
    reader = WarcReader(WarcSource(files=[str(tmp_path)]))
    (finding,) = reader.check()
    assert finding.hint == "pip install 'llmkit[web]'"
    with pytest.raises(MissingDependencyError, match="needs fastwarc"):
        list(reader.read(Slice("a", ())))
