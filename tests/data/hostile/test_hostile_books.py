from __future__ import annotations

import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from pypdf import PdfWriter

from llmkit.data.sources.base import Broken, Record, read_all
from llmkit.data.sources.config import AnySource
from llmkit.data.sources.registry import open_reader
from llmkit.store.documents import Document

CONTAINER = b'<container><rootfiles><rootfile full-path="o/p.opf"/></rootfiles></container>'
PACKAGE = b"""<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>
<dc:title>A  Book</dc:title><dc:creator>Ann</dc:creator><dc:creator>Bob</dc:creator><dc:language>fr</dc:language>
<dc:date>1901-02-03</dc:date></metadata><manifest>
<item id="1" href="one%20x.xhtml" media-type="application/xhtml+xml"/>
<item id="2" href="../two.xhtml" media-type="application/xhtml+xml"/>
<item id="p" href="p.png" media-type="image/png"/></manifest>
<spine><itemref idref="2"/><itemref idref="p"/><itemref idref="1"/></spine></package>"""
BOOK = {
    "META-INF/container.xml": CONTAINER,
    "o/p.opf": PACKAGE,
    "o/one x.xhtml": b"<html><body><p>Last words.</p></body></html>",
    "two.xhtml": b"<html><body><h1>First</h1><p>words.</p></body></html>",
}


def epub(changes: Mapping[str, bytes | None] | None = None) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**BOOK, **(changes or {})}.items():
            if data is not None:
                archive.writestr(name, data)
    return stream.getvalue()


def pdf(*pages: str, info: str = "", root: str = "") -> bytes:
    """A PDF written by hand, each page one line of text."""
    kids = " ".join(f"{4 + 2 * index} 0 R" for index in range(len(pages)))
    objects = [
        f"<</Type/Catalog/Pages 2 0 R{root}>>",
        f"<</Type/Pages/Count {len(pages)}/Kids[{kids}]>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for index, text in enumerate(pages):
        content = f"BT /F 12 Tf 9 9 Td ({text}) Tj ET"
        resources = f"/Resources<</Font<</F 3 0 R>>>>/MediaBox[0 0 99 99]/Contents {5 + 2 * index} 0 R"
        objects.append(f"<</Type/Page/Parent 2 0 R{resources}>>")
        objects.append(f"<</Length {len(content)}>>stream\n{content}\nendstream")
    objects.append(f"<<{info}>>")
    body = "%PDF-1.4\n"
    places: list[int] = []
    for number, text in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n"
    rows = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    table = f"xref\n0 {size}\n0000000000 65535 f \n{rows}trailer<</Size {size}/Root 1 0 R/Info {size - 1} 0 R>>\n"
    return f"{body}{table}startxref\n{len(body)}\n%%EOF".encode("latin-1")


def encrypted_pdf(password: str) -> bytes:
    writer = PdfWriter(clone_from=io.BytesIO(pdf("Secret")))
    writer.encrypt(password, "owner", algorithm="RC4-128")
    stream = io.BytesIO()
    writer.write(stream)
    return stream.getvalue()


def read(folder: Path, kind: str, files: Mapping[str, bytes], **settings: Any) -> dict[str, Record]:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    places = "folders" if kind == "code" else "files"
    source = TypeAdapter(AnySource).validate_python({"kind": kind, places: [str(folder)], **settings})
    records = list(read_all(open_reader(source)))
    for record in records:
        record.text.encode()  # it can be written
    return {record.path: record for record in records}


def test_a_book_in_the_order_of_its_spine(tmp_path: Path) -> None:
    (record,) = read(tmp_path, "epub", {"a.epub": epub()}).values()
    assert isinstance(record, Document)
    assert [line for line in record.text.splitlines() if line] == ["First", "words.", "Last words."]
    assert dict(record.metadata) == {"title": "A Book", "author": "Ann, Bob", "date": "1901-02-03"}
    assert record.language == "fr"


BOMB = b"<html><body>" + b"<p>x</p>" * 400_000
LOCKED = b'<e xmlns="x"><CipherReference URI="two.xhtml"/></e>'
LAUGHS = b'<!DOCTYPE a [<!ENTITY b "' + b"ha" * 99 + b'">]><a>&b;&b;</a>'


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unreadable"),
        (b"no archive at all", "unreadable"),
        (epub()[:-40], "unreadable"),
        (epub()[: len(epub()) // 2], "unreadable"),
        (b"x" * 200_000, "unreadable"),
        (epub({"META-INF/container.xml": None}), "malformed"),
        (epub({"META-INF/container.xml": b"<not"}), "malformed"),
        (epub({"META-INF/container.xml": b"<a/>"}), "malformed"),
        (epub({"META-INF/container.xml": b"\xff\xfe\xff"}), "malformed"),
        (epub({"META-INF/container.xml": LAUGHS}), "malformed"),
        (epub({"o/p.opf": b"<package/>"}), "malformed"),
        (epub({"o/p.opf": b"<a>" * 100_000}), "malformed"),
        (epub({"o/p.opf": PACKAGE.replace(b'idref="1"', b'idref="9"')}), "malformed"),
        (epub({"two.xhtml": None}), "malformed"),
        (epub({"two.xhtml": BOMB}), "too large"),
        (epub({"two.xhtml": b"<html>", "o/one x.xhtml": b""}), "no text"),
        (epub({"two.xhtml": epub(), "o/one x.xhtml": b"<p>\xff"}), "encoding"),
        (epub({"META-INF/encryption.xml": LOCKED}), "unreadable"),
    ],
)
def test_broken_books(tmp_path: Path, data: bytes, reason: str) -> None:
    found = read(tmp_path, "epub", {"a.epub": data, "b.epub": epub()}, max_bytes=1 << 20)
    assert isinstance(broken := found["a.epub"], Broken)
    assert broken.reason == reason, broken.detail
    assert isinstance(found["b.epub"], Document)


def test_text_and_metadata_of_a_pdf(tmp_path: Path) -> None:
    data = pdf("One", "Two", info="/Title(A  Title)/Author(Ann)/CreationDate(D:19990102030405)", root="/Lang(de)")
    found = read(tmp_path, "pdf", {"a.pdf": data, "b.pdf.gz": gzip.compress(encrypted_pdf(""))})
    assert isinstance(record := found["a.pdf"], Document)
    assert (record.text, record.language) == ("One\n\nTwo", "de")
    assert dict(record.metadata) == {"title": "A Title", "author": "Ann", "date": "1999-01-02"}
    # Readable without a password, though encrypted.
    assert found["b.pdf.gz"].text == "Secret"


@pytest.mark.parametrize(
    ("data", "reasons"),
    [
        (b"", {"malformed"}),
        (b"%PDF-1.4\n", {"malformed"}),
        (b"no PDF", {"malformed"}),
        (b"\xff" * 100_000, {"malformed"}),
        (b"x" * 2_000_000, {"too large"}),
        (pdf("One")[:150], {"malformed"}),
        (pdf(""), {"no text"}),
        (pdf("One").replace(b"/Kids[4 0 R]", b"/Kids[2 0 R]"), {"malformed", "no text"}),
        (encrypted_pdf("password"), {"unreadable"}),
    ],
)
def test_broken_pdfs(tmp_path: Path, data: bytes, reasons: set[str]) -> None:
    found = read(tmp_path, "pdf", {"a.pdf": data}, max_bytes=1_000_000)
    assert isinstance(broken := found["a.pdf"], Broken)
    assert broken.reason in reasons, broken.detail


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"one\xff", "encoding"),
        (b"x" * 5000, "too large"),
        (b"int a;\0", "no text"),
        (b"// Code generated by protoc. DO NOT EDIT.\nint a;", "generated"),
    ],
)
def test_broken_code(tmp_path: Path, data: bytes, reason: str) -> None:
    found = read(tmp_path, "code", {"a.c": data, "b.c": b"int b;"}, max_bytes=4096)
    assert isinstance(broken := found["a.c"], Broken)
    assert (broken.reason, found["b.c"].text) == (reason, "int b;")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.md", b"# \xff", "encoding"),
        ("a.md", b"x" * 5000, "too large"),
        ("a.md.gz", gzip.compress(b"# Title\n" * 99)[:-9], "unreadable"),
        ("a.md.xz", lzma.compress(b"\0" * (1 << 20)), "too large"),
        ("a.md.bz2", b"no bzip2", "unreadable"),
    ],
)
def test_broken_markdown(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    found = read(tmp_path, "markdown", {name: data, "b.md": b"text"}, max_bytes=4096)
    assert isinstance(broken := found[name], Broken)
    assert (broken.reason, found["b.md"].text) == (reason, "text")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "---\n",
        "---\na: [\n---\nx",
        "---\n- a\n---\nx",
        "---\n" + "[" * 9000 + "\n---\nx",
        "---\nx",
        "---\na: !!python/x\n---",
    ],
)
def test_what_only_looks_like_front_matter_is_text(tmp_path: Path, text: str) -> None:
    (record,) = read(tmp_path, "markdown", {"a.md": text.encode()}).values()
    assert (record.text, isinstance(record, Document)) == (text, True)


def test_a_pdf_beyond_its_limits(tmp_path: Path) -> None:
    slow = pdf("x) Tj (y" * 60_000)
    found = read(tmp_path, "pdf", {"a.pdf": slow, "b.pdf": pdf("One")}, seconds=0.2)
    assert isinstance(broken := found["a.pdf"], Broken)
    assert (broken.reason, broken.detail) == ("limits", "reading it took more than 0.2 s of computing time")
    assert found["b.pdf"].text == "One"


def test_a_pdf_that_expands_without_end(tmp_path: Path) -> None:
    bomb = zlib.compress(b" " * 200_000_000, 9)
    head, _, tail = pdf("One").partition(b"<</Length ")
    content = b"<</Filter/FlateDecode/Length %d>>stream\n%s" % (len(bomb), bomb)
    found = read(tmp_path, "pdf", {"a.pdf": head + content + tail[tail.index(b"\nendstream") :]}, megabytes=256)
    assert isinstance(broken := found["a.pdf"], Broken)
    assert broken.reason in {"limits", "malformed", "no text"}
