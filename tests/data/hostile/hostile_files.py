"""Broken and hostile files of every kind of source, and what has to become of each."""

from __future__ import annotations

import binascii
import bz2
import gzip
import io
import json
import lzma
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import zstandard
from book_files import BOOK, encrypted_pdf, epub, pdf
from warc_files import members, page, response, warc_record
from wiki_files import HEAD, TAIL, dump, multistream, wiki_page

MOST = 1 << 20
"""`max_bytes` of the sources."""


@dataclass(frozen=True)
class Case:
    """A file, and what becomes of it.

    Args:
        file: its ending.
        data: its bytes.
        broken: what has to be in the quarantine of it, in order: the reason, and the beginning of the detail, which
            names the place where there is one inside of the file.
        texts: documents that are read of it all the same.
    """

    file: str
    data: bytes
    broken: tuple[tuple[str, str], ...]
    texts: tuple[str, ...] = ()


def one(file: str, data: bytes, reason: str, detail: str, *texts: str) -> Case:
    """A file with one broken record."""
    return Case(file, data, ((reason, detail),), texts)


def fine(file: str, data: bytes, *texts: str) -> Case:
    """A file that looks bad and can be read."""
    return Case(file, data, (), texts)


@dataclass(frozen=True)
class Kind:
    """A kind of source: a file of it that is good, with its text, and files that are not."""

    file: str
    good: Callable[[str], bytes]
    cases: Mapping[str, Case]
    settings: Mapping[str, Any] = field(default_factory=dict)


@cache
def packed(data: bytes, make: Callable[[bytes, int], bytes] = gzip.compress) -> bytes:
    """The larger part of compressed data."""
    whole = make(data, 9)
    return whole[: len(whole) * 2 // 3]


def greedy_xz() -> bytes:
    """An xz file that asks for 4 GiB of memory to be read."""
    whole = bytearray(lzma.compress(b"text", check=lzma.CHECK_CRC32))
    size = (whole[12] + 1) * 4
    place = whole.index(b"\x21\x01", 12) + 2
    whole[place] = 40
    whole[12 + size - 4 : 12 + size] = struct.pack("<I", binascii.crc32(whole[12 : 12 + size - 4]))
    return bytes(whole)


def zipped(name: str, data: bytes) -> bytes:
    """A zip archive of one file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def tarred(data: bytes) -> bytes:
    """A tar archive of one file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


ZEROS = bytes(10_000_000)
BOMBS = {
    ".gz": gzip.compress(ZEROS),
    ".bz2": bz2.compress(ZEROS),
    ".xz": lzma.compress(ZEROS, preset=0),
    ".zst": zstandard.compress(ZEROS),
}
NOISE = random.Random(1).randbytes(200_000)
PROSE = "".join(f"Sentence number {number} of a text that goes on.\n" for number in range(9000)).encode()


def whole_files(ending: str) -> dict[str, Case]:
    """What can be wrong with a file that is one document, plain or compressed."""
    damaged = bytearray(gzip.compress(NOISE))
    damaged[100_000] ^= 0x10
    unreadable = "the file cannot be read: "
    longer = f"the file is longer than {MOST:,} bytes"
    return {
        "a byte that is no UTF-8": one(ending, b"some \xff text", "encoding", "byte 5: not valid utf-8"),
        "Latin-1": one(ending, "déjà".encode("latin-1"), "encoding", "byte 1: not valid utf-8"),
        "UTF-16": one(ending, "text".encode("utf-16-be") + b"\xd8\x00", "encoding", "byte 8: not valid utf-8"),
        "cut off within a character": one(ending, "é".encode()[:1], "encoding", "byte 0: not valid utf-8"),
        "half of a pair": one(ending, b"\xed\xa0\x80", "encoding", "byte 0: not valid utf-8"),
        "overlong": one(ending, b"\xc0\xaf", "encoding", "byte 0: not valid utf-8"),
        "one line of 3 MB": one(ending, b"x" * 3_000_000, "too large", longer),
        "gzip cut off": one(f"{ending}.gz", packed(PROSE), "unreadable", unreadable),
        "gzip of which the header is left": one(f"{ending}.gz", gzip.compress(b"x")[:10], "unreadable", unreadable),
        "gzip without its sum": one(f"{ending}.gz", gzip.compress(b"x")[:-4], "unreadable", unreadable),
        "gzip with a flipped bit": one(f"{ending}.gz", bytes(damaged), "unreadable", unreadable),
        "gzip that is none": one(f"{ending}.gz", PROSE, "unreadable", unreadable),
        "gzip and then something else": one(f"{ending}.gz", gzip.compress(b"x") + b"junk", "unreadable", unreadable),
        "bzip2 cut off": one(f"{ending}.bz2", packed(PROSE, bz2.compress), "unreadable", unreadable),
        "bzip2 that is none": one(f"{ending}.bz2", PROSE, "unreadable", unreadable),
        "xz cut off": one(f"{ending}.xz", lzma.compress(PROSE)[:-50], "unreadable", unreadable),
        "xz that asks for all memory": one(f"{ending}.xz", greedy_xz(), "unreadable", unreadable),
        "zstd cut off": one(f"{ending}.zst", zstandard.compress(NOISE)[:-999], "unreadable", unreadable),
        "zstd that is none": one(f"{ending}.zst", PROSE, "unreadable", unreadable),
        "a gzip bomb": one(f"{ending}.gz", BOMBS[".gz"], "too large", longer),
        "a bzip2 bomb": one(f"{ending}.bz2", BOMBS[".bz2"], "too large", longer),
        "an xz bomb": one(f"{ending}.xz", BOMBS[".xz"], "too large", longer),
        "a zstd bomb": one(f"{ending}.zst", BOMBS[".zst"], "too large", longer),
        "gzip in gzip": one(f"{ending}.gz", gzip.compress(gzip.compress(PROSE)), "encoding", "byte 1: not valid utf-8"),
        "bzip2 in xz": one(f"{ending}.xz", lzma.compress(bz2.compress(PROSE)), "encoding", "byte 1"),
        "a tar in gzip": fine(f"{ending}.gz", gzip.compress(tarred(b"x" * 99))),
    }


def lines_and_more(row: Callable[[str], bytes], head: bytes, ending: str, first: str) -> dict[str, Case]:
    """What can be wrong with a file of rows, around rows that are good."""
    before, after = row("Text before what is broken."), row("Text behind what is broken.")
    both = ("Text before what is broken.", "Text behind what is broken.")
    number = 2 + head.count(b"\n")
    on = f"after line {number - 1}: the file cannot be read on: "
    return {
        "a line of 3 MB": one(
            ending, head + before + row("x" * 3_000_000) + after, "too large", f"line {number}: the ", *both
        ),
        "a byte that is no UTF-8": one(
            ending,
            head + before + row("#").replace(b"#", b"\xff") + after,
            "encoding",
            f"line {number}: character ",
            *both,
        ),
        "gzip cut off": one(
            f"{ending}.gz", gzip.compress(head + before) + packed(NOISE)[:30], "unreadable", on, both[0]
        ),
        "bzip2 cut off": one(
            f"{ending}.bz2", bz2.compress(head + before) + bz2.compress(NOISE)[:99], "unreadable", on, both[0]
        ),
        "xz cut off": one(
            f"{ending}.xz", lzma.compress(head + before) + lzma.compress(NOISE)[:99], "unreadable", on, both[0]
        ),
        # The decoder keeps none of the last 4 KiB before the damage.
        "zstd cut off": one(
            f"{ending}.zst", zstandard.compress(head + before) + zstandard.compress(NOISE)[:12], "unreadable", first
        ),
        "gzip that is none": one(f"{ending}.gz", head + before, "unreadable", first),
        "nothing": fine(ending, b""),
        "nothing in gzip": fine(f"{ending}.gz", gzip.compress(b"")),
    }


def json_row(text: str) -> bytes:
    return json.dumps({"text": text}).encode() + b"\n"


def csv_row(text: str) -> bytes:
    return f'"{text}",1\n'.encode()


def between(*rows: bytes, head: bytes = b"", make: Callable[[str], bytes] = json_row) -> bytes:
    return b"".join([head, make(BEFORE), *rows, make(BEHIND)])


BEFORE, BEHIND = "Some text that stands before it.", "Some text that stands behind it."
JSONL = {
    **lines_and_more(json_row, b"", ".jsonl", "after line 0: the file cannot be read on: "),
    "the last line cut off": one(
        ".jsonl", between(b'{"text": "It ends he')[:-45], "malformed", "line 2: not JSON", BEFORE
    ),
    "nested without end": one(
        ".jsonl", between(b"[" * 200_000 + b"\n"), "malformed", "line 2: not JSON", BEFORE, BEHIND
    ),
    "a number without end": one(
        ".jsonl", between(b'{"text": 1' + b"0" * 9999 + b"}\n"), "malformed", "line 2: not JSON", BEFORE, BEHIND
    ),
    "no object": one(".jsonl", between(b"[1, 2]\n"), "malformed", "line 2: a JSON array", BEFORE, BEHIND),
    "no text": one(
        ".jsonl", between(b'{"text": {"a": 1}}\n'), "malformed", "line 2: the column `text` holds dict", BEFORE, BEHIND
    ),
    "half of a pair": one(
        ".jsonl", between(b'{"text": "\\ud800"}\n'), "encoding", "line 2: character 0", BEFORE, BEHIND
    ),
    "NUL bytes": one(".jsonl", between(b"\0\0\0\n"), "malformed", "line 2: not JSON", BEFORE, BEHIND),
    "line ends of old": one(".jsonl", between().replace(b"\n", b"\r"), "malformed", "line 1: not JSON: Extra data"),
    "UTF-16": Case(
        ".jsonl", json_row("a").decode().encode("utf-16"), (("encoding", "line 1: "), ("malformed", "line 2: "))
    ),
    "a bomb of one line": one(".jsonl.gz", BOMBS[".gz"], "too large", "line 1: the line is longer"),
    "a zip archive": Case(".jsonl", zipped("a.jsonl", between())[:30], (("encoding", "line 1: "),)),
    "names twice": fine(
        ".jsonl",
        b'{"text": "The first of two texts.", "text": "The second of two texts."}\n',
        "The second of two texts.",
    ),
}
CSV = {
    **lines_and_more(
        csv_row, b"text,n\n", ".csv", "the file's first row, with the names, cannot be read: after line 0"
    ),
    "a quote that never ends": one(
        ".csv", between(head=b"text,n\n", make=csv_row)[:-4], "malformed", "line 3: unexpected end of data", BEFORE
    ),
    "too many cells": one(
        ".csv", between(b"a,b,c\n", head=b"text,n\n", make=csv_row), "malformed", "line 3: 3 cells", BEFORE, BEHIND
    ),
    "text behind a quote": one(
        ".csv", between(b'"a"b,c\n', head=b"text,n\n", make=csv_row), "malformed", "line 3: ", BEFORE, BEHIND
    ),
    "a head that is no UTF-8": one(
        ".csv", between(head=b"text\xff,n\n", make=csv_row), "encoding", "the file's first row"
    ),
    "another head": Case(
        ".csv",
        between(head=b"body,n\n", make=csv_row),
        (("malformed", "line 2: the column `text` is not there"), ("malformed", "line 3: the column `text` is not")),
    ),
    "a bomb of one line": one(".csv.gz", gzip.compress(b"text\n" + ZEROS), "too large", "line 2: the row is longer"),
    # Where it ends cannot be told, and so each line behind what was read of it is a row that is none.
    "a row of many lines": Case(
        ".csv",
        b'text,n\n"' + (b"x" * 1000 + b"\n") * 1100 + b'",1\n',
        (("too large", "line 2: the row is longer"), *[("malformed", "line 10")] * 50, *[("malformed", "line 11")] * 3),
    ),
}


def parquet(texts: list[Any], **settings: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), stream, **settings)
    return stream.getvalue()


def with_damage(data: bytes, place: int, count: int = 8) -> bytes:
    return data[:place] + b"\xff" * count + data[place + count :]


def first_page(data: bytes) -> int:
    return int(pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(0).data_page_offset)


def not_utf8() -> pa.Array:
    return pa.StringArray.from_buffers(1, pa.py_buffer(struct.pack("<2i", 0, 2)), pa.py_buffer(b"\xff\xfe"))


TWO = [BEFORE, BEHIND]
PLAIN = parquet(TWO, compression="none", use_dictionary=False)
PARQUET = {
    "nothing": one(".parquet", b"", "unreadable", "the file cannot be read: "),
    "no Parquet": one(".parquet", PROSE, "unreadable", "the file cannot be read: "),
    "the end cut off": one(".parquet", PLAIN[:-30], "unreadable", "the file cannot be read: "),
    "the beginning cut off": one(".parquet", PLAIN[200:], "unreadable", ""),
    "its marks alone": one(".parquet", b"PAR1PAR1", "unreadable", "the file cannot be read: "),
    "a footer longer than the file": one(
        ".parquet", PLAIN[:-8] + struct.pack("<I", 1 << 31) + b"PAR1", "unreadable", "the file cannot be read: "
    ),
    "a footer of noise": one(
        ".parquet", with_damage(PLAIN, len(PLAIN) - 60, 40), "unreadable", "the file cannot be read: "
    ),
    "a page of noise": one(".parquet", with_damage(PLAIN, first_page(PLAIN)), "unreadable", "rows 1 to 2: cannot be "),
    "no text in a row": one(
        ".parquet", parquet([BEFORE, None]), "malformed", "row 2: the column `text` is empty", BEFORE
    ),
    "numbers": one(".parquet", parquet([1]), "malformed", "row 1: the column `text` holds int"),
    "a row of 3 MB": one(
        ".parquet", parquet([BEFORE, "x" * 3_000_000]), "too large", "row 2: the row is longer", BEFORE
    ),
    "a row that is no UTF-8": one(".parquet", parquet(not_utf8()), "encoding", "row 1: byte 0: not valid utf-8"),
    "gzip cut off": one(".parquet.gz", packed(PLAIN), "unreadable", "the file cannot be read: "),
    "compressed as it says it is not": one(".parquet", gzip.compress(PLAIN), "unreadable", "the file cannot be read: "),
}


def arrow(*batches: Any, stream: bool = False) -> bytes:
    out = io.BytesIO()
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(out, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return out.getvalue()


def batch(*texts: Any) -> Any:
    return pa.record_batch({"text": list(texts)})


def offsets_that_lead_out() -> bytes:
    """A good batch, and one whose only text says that it ends a gigabyte behind its buffer."""
    whole = arrow(batch(BEFORE), batch("x" * 77))
    return whole.replace(struct.pack("<2i", 0, 77), struct.pack("<2i", 0, 1 << 30))


STREAM = arrow(batch(BEFORE), batch(BEHIND), stream=True)
ARROW = {
    "nothing": one(".arrow", b"", "unreadable", "after row 0: the file cannot be read on: "),
    "no Arrow": one(".arrow", PROSE, "unreadable", "after row 0: the file cannot be read on: "),
    "the end cut off": one(
        ".arrow", arrow(batch(*TWO))[:-40], "unreadable", "after row 0: the file cannot be read on: "
    ),
    "its mark alone": one(".arrow", b"ARROW1", "unreadable", "after row 0: the file cannot be read on: "),
    "a stream cut off": one(".arrows", STREAM[:-60], "unreadable", "after row 1: the file cannot be read on: ", BEFORE),
    "a message of 2 GiB that is none": one(
        ".arrows", b"\xff\xff\xff\xff" + struct.pack("<i", (1 << 31) - 1), "unreadable", "after row 0: the file cannot"
    ),
    "offsets that lead out": one(
        ".arrow", offsets_that_lead_out(), "unreadable", "after row 1: the file cannot", BEFORE
    ),
    "no text in a row": one(".feather", arrow(batch(None, BEHIND)), "malformed", "row 1: the column", BEHIND),
    "a row of 3 MB": one(
        ".ipc", arrow(batch("x" * 3_000_000, BEHIND)), "too large", "row 1: the row is longer", BEHIND
    ),
    "gzip cut off": one(
        ".arrow.gz", packed(arrow(batch(*TWO))), "unreadable", "after row 0: the file cannot be read on"
    ),
}

MAIN = "<html><body><main><p>%s</p></main></body></html>"
DEEP = b"<p>" + b"<div>" * 20_000 + b"deep"
HTML = {
    **whole_files(".html"),
    "UTF-16": fine(".html", MAIN.replace("%s", BEFORE).encode("utf-16"), BEFORE),
    "deep markup": one(".html", DEEP, "limits", "extracting its text took more than 0.3 s of computing time"),
    "tags that never close": fine(".html", (MAIN % BEFORE).encode() + b"<b" * 50_000, BEFORE),
    "attributes without end": fine(".html", (MAIN % BEFORE).encode() + b"<p" + b" a=b" * 50_000 + b">", BEFORE),
    "a charset that runs": fine(".html", b'<meta charset="unicode_escape">' + (MAIN % BEFORE).encode(), BEFORE),
    "nothing": fine(".html", b""),
}
del HTML["a tar in gzip"]
LAUGHS = b"---\na: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (here, here, b",".join([b"*%c" % (here - 1)] * 9)) for here in b"bcdefghi"
)
MARKDOWN = {
    **whole_files(".md"),
    "aliases that multiply": fine(".md", LAUGHS + b"---\n" + BEFORE.encode(), BEFORE),
    "front matter that runs": fine(".md", b"---\na: !!python/object/apply:os.abort []\n---\n" + BEFORE.encode()),
}
TEXT = {
    **whole_files(".txt"),
    "nothing": fine(".txt", b""),
    "NUL bytes": fine(".txt", b"\0" * 99),
    "a zip archive": one(".txt", zipped("a.txt", NOISE), "encoding", "byte "),
    "archives in each other": one(
        ".txt.gz", gzip.compress(zipped("a.zip", zipped("b.zip", zipped("c.txt", ZEROS)))), "encoding", "byte "
    ),
}

CODE = {
    name: case
    for name, case in whole_files(".c").items()
    if "." not in case.file.removeprefix(".") and name != "UTF-16"
} | {
    "a binary file": one(".c", b"\x7fELF\0\0", "no text", "a binary file"),
    "written by a program": one(".c", b"// @generated\nint a;", "generated", "line 1: says that the file is generated"),
    "minified": one(".min.js", b"var a;", "generated", "a minified file"),
    "nothing": fine(".c", b""),
}

EPUB = {
    "nothing": one(".epub", b"", "unreadable", "the archive is damaged: "),
    "no archive": one(".epub", PROSE, "unreadable", "the archive is damaged: "),
    "cut off": one(".epub", epub()[:-40], "unreadable", "the archive is damaged: "),
    "without a container": one(
        ".epub", epub({"META-INF/container.xml": None}), "malformed", "the archive holds no `META"
    ),
    "entities that multiply": one(
        ".epub",
        epub({"META-INF/container.xml": b"<!DOCTYPE a [<!ENTITY b 'ha'>]><a>&b;</a>"}),
        "malformed",
        "META-INF/c",
    ),
    "nested without end": one(".epub", epub({"o/p.opf": b"<a>" * 100_000}), "malformed", "o/p.opf: not XML"),
    "a chapter that expands": one(".epub", epub({"two.xhtml": ZEROS}), "too large", "two.xhtml: more than"),
    "a chapter that is no UTF-8": one(".epub", epub({"two.xhtml": b"<p>\xff"}), "encoding", "two.xhtml: byte 3"),
    "a book in a book": fine(".epub", epub({"o/a.epub": epub()}), "First\n\nwords.\n\nLast words."),
    "a chapter outside": one(
        ".epub",
        epub({"o/p.opf": BOOK["o/p.opf"].replace(b"../two", b"../../../etc/passwd")}),
        "malformed",
        "the archive ",
    ),
    "gzip cut off": one(".epub.gz", packed(epub()), "unreadable", "the file cannot be read: "),
}
PDF = {
    "nothing": one(".pdf", b"", "malformed", "the file is empty"),
    "no PDF": one(".pdf", PROSE, "malformed", "not a "),
    "cut off": one(".pdf", pdf("One")[:150], "malformed", ""),
    "pages in a circle": one(".pdf", pdf("One").replace(b"/Kids[4 0 R]", b"/Kids[2 0 R]"), "malformed", ""),
    "with a password": one(".pdf", encrypted_pdf("password"), "unreadable", "encrypted with a password"),
    "without a text layer": one(".pdf", pdf(""), "no text", "none of its 1 pages has a text layer"),
    "operators without end": one(
        ".pdf", pdf("x) Tj (y" * 60_000), "limits", "reading it took more than 0.3 s of computing time"
    ),
    "gzip cut off": one(".pdf.gz", packed(pdf("One")), "unreadable", "the file cannot be read: "),
}

A, B = wiki_page("A", BEFORE), wiki_page("B", BEHIND)
PAGE_A, PAGE_B = f"byte {len(HEAD) + 2:,}: ", f"byte {len(HEAD + A) + 2:,}: "
DOCTYPE = b"<!DOCTYPE a [<!ENTITY b 'ha'>]>"
WIKI = {
    "nothing": one(".xml", b"", "unreadable", "byte 0: the file holds no page of a dump"),
    "no XML": one(".xml", PROSE, "unreadable", "byte 0: the file holds no page of a dump"),
    "cut off within a page": one(
        ".xml",
        dump([A, B])[:-100],
        "unreadable",
        f"{PAGE_B}the file ends within a page",
        BEFORE,
    ),
    "cut off between pages": one(
        ".xml",
        dump([A]).removesuffix(TAIL.encode()),
        "unreadable",
        f"byte {len(HEAD + A) - 1:,}: the file does not end",
        BEFORE,
    ),
    "a page that is no XML": one(
        ".xml",
        dump([A, wiki_page("B", "x").replace("<ns>", "<"), wiki_page("C", BEHIND)]),
        "malformed",
        f"{PAGE_B}the page is not XML",
        BEFORE,
        BEHIND,
    ),
    "a page that is no UTF-8": one(
        ".xml",
        dump([A, wiki_page("B", "#")]).replace(b">#<", b">\xff<"),
        "encoding",
        f"{PAGE_B}byte 395 of the page: not valid utf-8",
        BEFORE,
    ),
    "a page of 3 MB": one(".xml", dump([wiki_page("A", "x" * 3_000_000)]), "too large", f"{PAGE_A}the page has 3,000,"),
    "a page without end": one(
        ".xml", HEAD.encode() + b"  <page>" + b"x" * 3_000_000, "unreadable", f"{PAGE_A}the file ends"
    ),
    "markup without end": one(
        ".xml", dump([wiki_page("A", "<div>" * 20_000)]), "limits", f"{PAGE_A}A: taking the text"
    ),
    "templates alone": one(
        ".xml", dump([wiki_page("A", "{{a}}")]), "no text", f"{PAGE_A}A: its wikitext shows no text"
    ),
    "no text": one(
        ".xml",
        dump([wiki_page("A", "x").replace(">x<", "><")]),
        "no text",
        f"{PAGE_A}A: the dump does not hold its text",
    ),
    "entities that multiply": Case(
        ".xml",
        DOCTYPE + dump([wiki_page("A", "#").replace(">#<", ">&b;<")]),
        (
            ("malformed", "byte 0: the head of the dump cannot be read"),
            ("malformed", f"byte {len(DOCTYPE) + len(HEAD) + 2:,}: the page is not XML: und"),
        ),
    ),
    "bzip2 cut off": one(
        ".xml.bz2",
        multistream([A, wiki_page("B", NOISE.hex())])[:-9000],
        "unreadable",
        "byte ",
        BEFORE,
    ),
    "a stream of noise": one(
        ".xml.bz2",
        bz2.compress(dump([A])) + b"BZh91AY&SY" + NOISE + bz2.compress(dump([B])),
        "unreadable",
        f"byte {len(bz2.compress(dump([A]))):,}: the file cannot be read on",
        BEFORE,
        BEHIND,
    ),
    "a bomb": one(
        ".xml.gz", gzip.compress(HEAD.encode() + b"  <page>" + ZEROS), "unreadable", "byte 0: the file ends within a"
    ),
}

LINES = "Content-Type: text/plain"
FIRST, LAST = page(1), page(2)
ONCE = ("Page 1.", "Page 2.")
HERE = f"byte {len(FIRST):,}: "
MEMBER = f"byte {len(members([FIRST])):,}: "
WARC = {
    "nothing": fine(".warc", b""),
    "no archive": one(".warc", PROSE, "malformed", "byte 0: no record begins here"),
    "cut off within a record": one(
        ".warc", FIRST + LAST[:-20], "unreadable", HERE + "the file cannot be read on: the record is cut off", ONCE[0]
    ),
    "cut off within a header": one(
        ".warc", FIRST + LAST[:40], "unreadable", HERE + "the file cannot be read on", ONCE[0]
    ),
    "noise between records": one(".warc", FIRST + NOISE + b"\n\r\n" + LAST, "malformed", HERE + "no record", *ONCE),
    "a record longer than it says": one(
        ".warc",
        FIRST + response("http://a", b"<p>x" * 99, length=99) + LAST,
        "malformed",
        HERE + "the record does not",
        *ONCE,
    ),
    "a record that claims to be endless": one(
        ".warc",
        FIRST + response("http://a", b"<p>x", length=10**15) + LAST,
        "unreadable",
        HERE + "the file cannot",
        *ONCE,
    ),
    "a length that is no number": one(
        ".warc",
        FIRST + warc_record("response", "http://a", b"x").replace(b"Length: 1", b"Length: -1") + LAST,
        "malformed",
        HERE + "the record's length is not a number",
        *ONCE,
    ),
    "a header without end": one(
        ".warc",
        FIRST + b"WARC/1.0\r\n" + b"X: y\r\n" * 50_000 + b"\r\n\r\n" + LAST,
        "malformed",
        HERE + "the header of",
        *ONCE,
    ),
    "a page of 3 MB": one(
        ".warc",
        FIRST + response("http://a", b"x" * 3_000_000) + LAST,
        "too large",
        HERE + "http://a: the record has",
        *ONCE,
    ),
    "a page that expands": one(
        ".warc",
        FIRST + response("http://a", gzip.compress(ZEROS), "Content-Encoding: gzip") + LAST,
        "too large",
        HERE + "http://a: the page is longer than",
        *ONCE,
    ),
    "a page that is cut off": one(
        ".warc",
        FIRST + response("http://a", packed(PROSE), "Content-Encoding: gzip") + LAST,
        "malformed",
        HERE + "http://a: the body of the answer cannot be decoded: the compressed data are cut off",
        *ONCE,
    ),
    "a page that is no UTF-8": one(".warc", FIRST + response("http://a", b"<p>\xff") + LAST, "encoding", HERE, *ONCE),
    "no page": one(".warc", FIRST + response("http://a", b"", status="404 X") + LAST, "no text", HERE, *ONCE),
    "no HTTP": one(
        ".warc",
        FIRST + warc_record("response", "http://a", b"\0", "Content-Type: application/http") + LAST,
        "malformed",
        HERE + "http://a: the answer does not begin as HTTP does",
        *ONCE,
    ),
    "deep markup": one(
        ".warc", FIRST + response("http://a", DEEP) + LAST, "limits", HERE + "http://a: extracting", *ONCE
    ),
    "an archive in a page": fine(".warc", response("http://a", page(7) + page(8), LINES)),
    "gzip cut off": one(".warc.gz", members([FIRST, LAST])[:-20], "unreadable", MEMBER + "the file cannot", ONCE[0]),
    "a member of noise": one(
        ".warc.gz",
        members([FIRST]) + b"\x1f\x8b\x08" + NOISE + members([LAST]),
        "unreadable",
        MEMBER + "the file ",
        *ONCE,
    ),
    "xz that asks for all memory": one(".warc.xz", greedy_xz(), "unreadable", "byte 0: the file cannot be read on"),
}

KINDS = {
    "text": Kind(".txt", str.encode, TEXT),
    "markdown": Kind(".md", str.encode, MARKDOWN),
    "html": Kind(".html", lambda text: (MAIN % text).encode(), HTML, {"extraction": {"seconds": 0.3}}),
    "jsonl": Kind(".jsonl", json_row, JSONL),
    "csv": Kind(".csv", lambda text: b"text,n\n" + csv_row(text), CSV),
    "parquet": Kind(".parquet", lambda text: parquet([text]), PARQUET),
    "arrow": Kind(".arrow", lambda text: arrow(batch(text)), ARROW),
    "epub": Kind(".epub", lambda text: epub({"o/one x.xhtml": f"<p>{text}".encode(), "two.xhtml": b"<p>"}), EPUB),
    "pdf": Kind(".pdf", pdf, PDF, {"seconds": 0.3}),
    "code": Kind(".c", str.encode, CODE),
    "wikipedia": Kind(".xml", lambda text: dump([wiki_page("Good", text)]), WIKI, {"seconds": 0.3}),
    "warc": Kind(
        ".warc", lambda text: response("http://good", f"<p>{text}".encode()), WARC, {"extraction": {"seconds": 0.3}}
    ),
}
