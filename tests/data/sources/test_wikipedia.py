from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
from pathlib import Path
from typing import Any

import pytest
import zstandard
from wiki_files import HEAD, TAIL, dump, multistream, wiki_page

from llmkit.data.sources.base import Broken, Record, Slice, read_all
from llmkit.data.sources.config import WikipediaSource
from llmkit.data.sources.wikipedia import WikipediaReader
from llmkit.data.sources.wikipedia_pages import _Cutter
from llmkit.errors import MissingDependencyError
from llmkit.store.documents import Document


def read(path: Path, **settings: Any) -> list[Record]:
    return list(read_all(WikipediaReader(WikipediaSource.model_validate({"files": [str(path)], **settings}))))


def texts(records: list[Record]) -> list[str]:
    assert all(isinstance(record, Document) for record in records), records
    return [record.text for record in records]


def numbered(number: int, size: int = 0) -> str:
    return wiki_page(f"Page {number}", f"Text of '''page''' {number}.{' more' * (size // 5)}", number)


def test_articles_and_what_is_none(tmp_path: Path) -> None:
    pages = [
        wiki_page("Köln & Bonn/Ä?", "'''Köln''' is a [[town]]. [[Datei:x.jpg|mini|Dom]] [[Kategorie:Ort]]", 12),
        wiki_page("Cologne", "#REDIRECT [[Köln]]", 13, redirect="Köln"),
        wiki_page("Diskussion:Köln", "Is it?", 14, namespace=1),
        wiki_page("Bonn", "A <b>town</b> &amp; more.", 15),
    ]
    (tmp_path / "a.xml").write_bytes(dump(pages))
    found = read(tmp_path)
    assert texts(found) == ["Köln is a town.", "A town & more."]
    first = found[0]
    assert isinstance(first, Document)
    assert first == Document(
        "",
        "Köln is a town.",
        "wikipedia",
        "https://de.wikipedia.org/wiki/K%C3%B6ln_%26_Bonn/%C3%84%3F",
        "CC-BY-SA-4.0",
        "de",
        {"title": "Köln & Bonn/Ä?", "id": "12", "revision": "1012", "date": "2024-01-02"},
    )
    (talk,) = read(tmp_path, namespaces=[1], license="CC0-1.0", language="nl")
    assert isinstance(talk, Document)
    assert (talk.text, talk.license, talk.language) == ("Is it?", "CC0-1.0", "nl")


def test_a_wiki_that_says_little_of_itself(tmp_path: Path) -> None:
    head = "<mediawiki><siteinfo><dbname>pt_brwiki</dbname></siteinfo>"
    (tmp_path / "a.xml").write_text(f"{head}<page><title>A b</title><revision><text>x</text></revision></page>{TAIL}")
    (found,) = read(tmp_path)
    assert found == Document("", "x", "wikipedia", "A b", None, "pt-br", {"title": "A b"})


def test_of_several_revisions_the_last_is_read(tmp_path: Path) -> None:
    page = wiki_page("A", "new", 1).replace(
        "<revision>", "<revision><id>3</id><text>old</text></revision><revision>", 1
    )
    (tmp_path / "a.xml").write_bytes(dump([page]))
    (found,) = read(tmp_path)
    assert isinstance(found, Document)
    assert (found.text, found.metadata["revision"]) == ("new", "1001")


@pytest.mark.parametrize(
    ("page", "reason", "detail"),
    [
        (wiki_page("B", "{{stub}} [[Datei:x.jpg]]"), "no text", "B: its wikitext shows no text"),
        (wiki_page("B", "{}", model="json"), "no text", "B: its content is json, and not wikitext"),
        (
            wiki_page("B", "x").replace("<text ", "<other ").replace("</text>", "</other>"),
            "no text",
            "B: the dump does",
        ),
        (wiki_page("B", "x").replace('preserve">x<', 'preserve"><'), "no text", "B: the dump does not hold its text"),
        (wiki_page("B", "x").replace("<text ", '<text deleted="deleted" '), "no text", "B: the dump does not hold"),
        (wiki_page("B", "x" * 90_000), "too large", "bytes, more than 80,000"),
        (
            wiki_page("B", "x <b> &nothing; y").replace("&amp;nothing", "&nothing"),
            "malformed",
            "the page is not XML: un",
        ),
        (wiki_page("B", "x").replace("<ns>", "<ns"), "malformed", "the page is not XML: not well-formed"),
        (wiki_page("B", "x").replace("<ns>", "<a>" * 9), "malformed", "more than 8 elements inside each other"),
        (wiki_page("B", "x").replace("<ns>", "<!DOCTYPE a><ns>"), "malformed", "the page is not XML"),
        (wiki_page("B", "x").replace("</page>", ""), "malformed", "the page does not end before another begins"),
        (wiki_page("B", "x").replace("<page>", "<pag"), "malformed", "bytes that belong to no page"),
        (wiki_page("B", "<div>" * 5000), "limits", "B: taking the text out of its wikitext took more than 0.2 s"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_broken_pages(tmp_path: Path, page: str, reason: str, detail: str, packed: bool) -> None:
    pages = [numbered(1), page, numbered(2)]
    name = "a.xml.bz2" if packed else "a.xml"
    (tmp_path / name).write_bytes(multistream(pages) if packed else dump(pages))
    first, broken, last = read(tmp_path, max_bytes=80_000, seconds=0.2)
    assert [first.text, last.text] == ["Text of page 1.", "Text of page 2."]
    assert isinstance(broken, Broken)
    assert (broken.reason, broken.path) == (reason, name), broken.detail
    place = len(multistream(pages[:1])) - len(bz2.compress(TAIL.encode())) if packed else len(HEAD + pages[0]) + 2
    if "belong to no" in detail:
        # What is no page begins where the page before it ends.
        place = len(bz2.compress(HEAD.encode())) if packed else place - 3
    assert broken.detail.startswith(f"byte {place:,}: ")
    assert detail in broken.detail


def test_bytes_that_are_no_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(dump([numbered(1), wiki_page("B", "#"), numbered(2)]).replace(b">#<", b">\xff<"))
    first, broken, last = read(tmp_path)
    assert (first.text, last.text) == ("Text of page 1.", "Text of page 2.")
    assert isinstance(broken, Broken)
    assert broken.reason == "encoding"
    assert "not valid utf-8 (invalid start byte)" in broken.detail
    assert "\\xff" in broken.text


LAUGHS = (
    '<!DOCTYPE mediawiki [<!ENTITY a "ha"><!ENTITY b "' + "&a;" * 99 + '"><!ENTITY c SYSTEM "file:///etc/passwd">]>'
)


def test_entities_are_never_expanded(tmp_path: Path) -> None:
    pages = [wiki_page(name, "#").replace(">#<", f">&{name};<") for name in "bc"]
    (tmp_path / "a.xml").write_bytes(LAUGHS.encode() + dump([*pages, numbered(1)]))
    head, *broken, good = read(tmp_path)
    assert isinstance(head, Broken)
    assert head.detail == (
        "byte 0: the head of the dump cannot be read: it declares a document type, and with it entities that may grow"
        " without end"
    )
    assert [(item.reason, "undefined entity" in item.detail) for item in broken if isinstance(item, Broken)] == [
        ("malformed", True)
    ] * 2
    assert good.text == "Text of page 1."


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "the file holds no page of a dump"),
        (b"no XML", "the file holds no page of a dump"),
        (HEAD.encode(), "the file holds no page of a dump"),
        (dump([]).decode().encode("utf-16"), "the file holds no page of a dump"),
        (b"<page>" + b"x" * 300_000, "the file ends within a page"),
    ],
)
def test_files_that_are_no_dumps(tmp_path: Path, data: bytes, detail: str) -> None:
    (tmp_path / "a.xml").write_bytes(data)
    (tmp_path / "b.xml").write_bytes(dump([numbered(1)]))
    broken, good = read(tmp_path)
    assert isinstance(broken, Broken)
    assert (detail in broken.detail, good.text) == (True, "Text of page 1."), broken.detail


def test_a_dump_without_a_page_and_two_dumps_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(dump([]))
    (tmp_path / "b.xml").write_bytes(dump([numbered(1)]) + dump([numbered(2)]))
    assert texts(read(tmp_path)) == ["Text of page 1.", "Text of page 2."]


COMPRESSIONS: dict[str, Any] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_every_compression_whole_and_cut_off(tmp_path: Path, ending: str) -> None:
    draw = random.Random(1)
    pages = [wiki_page(f"P{n}", draw.randbytes(500).hex(), n) for n in range(100)]
    data = COMPRESSIONS[ending](dump(pages))
    (tmp_path / f"a.xml{ending}").write_bytes(data)
    assert len(texts(read(tmp_path))) == 100
    (tmp_path / f"a.xml{ending}").write_bytes(data[: len(data) * 3 // 4])
    *whole, broken = read(tmp_path)
    assert isinstance(broken, Broken)
    assert broken.reason == "unreadable"
    assert texts(whole) == list(map(read_text, pages[: len(whole)]))
    # The blocks of bzip2 and zstd are read whole or not at all.
    assert len(whole) > (-1 if ending in (".bz2", ".zst") else 60)


def read_text(page: str) -> str:
    return page.partition('preserve">')[2].partition("</text>")[0]


@pytest.mark.parametrize("form", ["plain", "streams", "blocks"])
def test_parts_of_large_files_are_the_whole(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.data.sources.wikipedia_pages.SLICE_BYTES", 4000)
    monkeypatch.setattr("llmkit.data.sources.wikipedia_pages._STEP_BYTES", 2000)
    monkeypatch.setattr("llmkit.data.sources.base.SLICE_BYTES", 4000)
    monkeypatch.setattr("llmkit.data.sources.wikipedia_pages._BUFFER_BYTES", 1000)
    draw = random.Random(1)
    pages = [numbered(number, draw.choice((0, 50, 9000))) for number in range(60)]
    whole = dump(pages)
    data = {
        "plain": whole,
        "streams": multistream(pages, together=2),
        # Streams of equal size, as parallel compressors make them, in which pages begin anywhere, marks included.
        "blocks": b"".join(bz2.compress(whole[start : start + 701]) for start in range(0, len(whole), 701)),
    }[form]
    (tmp_path / ("a.xml" if form == "plain" else "a.xml.bz2")).write_bytes(data)
    reader = WikipediaReader(WikipediaSource(files=[str(tmp_path)]))
    pieces = reader.slices()
    assert len(pieces) > 3
    found = [list(reader.read(piece)) for piece in pieces]
    expected = [f"https://de.wikipedia.org/wiki/Page_{n}" for n in range(60)]
    assert [record.path for part in found for record in part] == expected
    assert sum(bool(part) for part in found) > 3


def test_a_damaged_stream_costs_its_pages_alone(tmp_path: Path) -> None:
    pages = [numbered(number) for number in range(8)]
    data = bytearray(multistream(pages, together=2))
    place = len(bz2.compress(HEAD.encode())) + len(bz2.compress("".join(pages[:2]).encode()))
    data[place + 40] ^= 0xFF
    (tmp_path / "a.xml.bz2").write_bytes(data)
    found = read(tmp_path)
    (broken,) = [record for record in found if isinstance(record, Broken)]
    assert broken.detail.startswith(f"byte {place:,}: the file cannot be read on: ")
    kept = [record.text for record in found if isinstance(record, Document)]
    assert kept == [f"Text of page {number}." for number in (0, 1, 4, 5, 6, 7)]


def test_a_file_made_of_beginnings_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.data.sources.wikipedia_pages._MOST_DAMAGES", 20)
    (tmp_path / "a.xml.bz2").write_bytes(b"BZh91AY&SY" * 5000)
    found = read(tmp_path)
    assert len(found) == 21
    assert isinstance(last := found[-1], Broken)
    assert "too many places are damaged" in last.detail


def test_a_page_without_end_is_not_held() -> None:
    cutter = _Cutter(10_000, 0, None, exact=True)
    assert list(cutter.feed(0, b"<page>")) == []
    for number in range(300):
        assert list(cutter.feed(6 + number * 1000, b"x" * 1000)) == []
    assert sum(map(len, cutter._page or [])) <= 10_000
    (page,) = cutter.feed(300_006, b"</page>")
    assert (page.position, getattr(page, "size", 0)) == (0, 300_013)


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_loses_little_and_nothing_silently(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    pages = [numbered(number) for number in range(40)]
    for _ in range(10):
        stream = io.BytesIO(dump(pages))
        data = bytearray(stream.getvalue())
        start = draw.randrange(len(HEAD), len(data) - len(TAIL) - 100)
        del data[start : start + draw.randrange(1, 3000)]
        (tmp_path / "a.xml").write_bytes(data)
        found = read(tmp_path)
        whole = {record.text for record in found if isinstance(record, Document)}
        intact = {f"Text of page {n}." for n in range(40) if pages[n].encode() in bytes(data)}
        assert intact <= whole
        assert len(whole) == 40 or any(isinstance(record, Broken) for record in found) or _between(data)


def _between(data: bytes) -> bool:
    """Whether what is missing are whole pages, which no file can tell."""
    return data.count(b"<page>") == data.count(b"</page>") and b"</page>\n  <page>" in data


def test_a_missing_library_is_told_before_and_during(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.xml").write_bytes(dump([]))
    monkeypatch.setattr("llmkit.data.sources.wikipedia.find_spec", lambda name: None)
    reader = WikipediaReader(WikipediaSource(files=[str(tmp_path)]))
    (finding,) = reader.check()
    assert finding.hint == "pip install 'llmkit[data]'"
    with pytest.raises(MissingDependencyError, match="mwparserfromhell"):
        list(reader.read(Slice("a", ())))
