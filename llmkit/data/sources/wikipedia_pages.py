"""Pages of MediaWiki's XML dumps, each parsed by itself, so that a damaged one costs the others nothing.

A dump is cut at `<page>` and `</page>`, which no text can hold: `<` is escaped there. Each page is then parsed without
the head of the file, and so without whatever entities it declares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit
from xml.parsers import expat

from llmkit.data.sources.base import SLICE_BYTES, Damage
from llmkit.data.sources.compression import Members
from llmkit.data.sources.files import READ_ERRORS, SourceFile, is_compressed, open_bytes, open_raw

_OPEN, _CLOSE = b"<page>", b"</page>"
_STREAM = re.compile(rb"BZh[1-9]1AY&SY")
_STREAM_BYTES = 10
_STEP_BYTES = SLICE_BYTES // 4
"""Of a part of a bzip2 file: text shrinks to a quarter and less there."""
_BUFFER_BYTES = 1 << 18
_HEAD_BYTES = 1 << 20
_COPY_BYTES = 4096
_MOST_DAMAGES = 1000
"""A file with more places that only look like the beginning of compressed data was made so."""
_DEEPEST = 8
_BETWEEN = re.compile(
    rb"\s*(?:</mediawiki>\s*)?(?:<\?xml[^>]*>\s*)?(?:<mediawiki\b[^>]*>\s*)?(?:<siteinfo>.*?</siteinfo>\s*)?", re.DOTALL
)
"""What may stand between two pages: nothing, or the end of one dump and the head of another."""
_END = b"</mediawiki>"
_HIDDEN = {6: ("file", "image"), 14: ("category",)}
"""Namespaces whose links show nothing, with the names that they have in every language."""
_LICENSED = ".wikipedia.org"
_LICENSE = "CC-BY-SA-4.0"
_TAG = re.compile(r"[a-z]{2,3}(?:-[a-z0-9]{2,8})*")
_UNESCAPED = ";@$!*(),/~:"
"""What MediaWiki does not escape in the names of pages (wfUrlencode)."""


@dataclass(frozen=True, slots=True)
class Site:
    """What the head of a dump says of its wiki.

    Args:
        base: URL of its main page.
        language: BCP 47 tag.
        hidden: names, in lower case, of the namespaces whose links show nothing.
    """

    base: str = ""
    language: str | None = None
    hidden: Sequence[str] = tuple(name for names in _HIDDEN.values() for name in names)

    @property
    def license(self) -> str | None:
        """The licence of its texts, where it is a Wikipedia."""
        try:
            host = urlsplit(self.base).hostname or ""
        except ValueError:
            return None
        return _LICENSE if host.endswith(_LICENSED) else None

    def url(self, title: str) -> str:
        """The URL of a page; its title alone where the dump does not tell that of the wiki."""
        folder, slash, _ = self.base.rpartition("/")
        return f"{folder}/{quote(title.replace(' ', '_'), safe=_UNESCAPED)}" if slash else title


@dataclass(frozen=True, slots=True)
class RawPage:
    """A page as it stands in a dump.

    Args:
        position: the byte at which it begins; in a compressed file that of the compressed stream it begins in, or, in
            zstd, a byte of what the file holds.
        size: bytes of its XML.
        data: the XML; its beginning alone where it is larger than is read.
    """

    position: int
    size: int
    data: bytes


@dataclass(frozen=True, slots=True)
class WikiPage:
    """What a page says of itself and of its newest revision.

    Args:
        title: of the page, with its namespace.
        namespace: number of the namespace; 0 is that of articles.
        identity: number of the page.
        redirect: whether it only leads to another page.
        revision: number of the revision.
        timestamp: when it was written ("2024-01-02T03:04:05Z").
        model: what kind of content it has, where the dump says it.
        text: the wikitext; None where the dump does not hold it.
    """

    title: str
    namespace: str
    identity: str
    redirect: bool
    revision: str
    timestamp: str
    model: str
    text: str | None


def part_bounds(file: SourceFile) -> list[int]:
    """Where a file is cut into parts that are read side by side: plain XML anywhere, bzip2 for its streams."""
    if _ending(file) == ".bz2":
        return [*range(0, file.size, _STEP_BYTES), file.size]
    return [0, file.size] if is_compressed(file.name) else [*range(0, file.size, SLICE_BYTES), file.size]


def read_site(file: SourceFile) -> tuple[Site, Damage | None]:
    """What the head of a dump says; and what is wrong with it, other than that it cannot be read."""
    head = b""
    try:
        with open_bytes(file.path) as stream:
            while len(head) < _HEAD_BYTES and _OPEN not in head[-_BUFFER_BYTES - len(_OPEN) :]:
                piece = stream.read1(_BUFFER_BYTES)  # type: ignore[attr-defined]
                if not piece:
                    break
                head += piece
    except READ_ERRORS:
        # That is told where the pages are read.
        pass
    head, found, _ = head.partition(_OPEN)
    if not found:
        return Site(), None
    try:
        return _parse_head(head), None
    except ValueError as error:
        return Site(), Damage(0, f"the head of the dump cannot be read: {error}", "malformed")


def dump_pages(file: SourceFile, most: int, begin: int = 0, end: int | None = None) -> Iterator[RawPage | Damage]:
    """The pages of a dump that begin in a part of it, in order, and each place that is damaged.

    Args:
        file: the file, plain or compressed.
        most: bytes of the largest page that is read.
        begin: where the part begins, in bytes as the file is stored; of files that `part_bounds` cuts alone.
        end: where it ends; None for the end of the file.
    """
    in_streams = _ending(file) == ".bz2"
    place = begin if begin == 0 or not in_streams else _next_stream(file, begin, end)
    damages = 0
    while place is not None:
        cutter = _Cutter(most, place, end, exact=not is_compressed(file.name))
        try:
            for position, data in _pieces(file, place):
                yield from cutter.feed(position, data)
                if cutter.is_done:
                    return
            yield from cutter.finish()
            return
        except _DamagedError as error:
            if end is not None and error.position >= end and not cutter.in_page:
                # The next part begins there, and tells it.
                return
            within = " (within a page)" if cutter.in_page else ""
            yield Damage(error.position, f"the file cannot be read on{within}: {error}", "unreadable")
            position = error.position
        damages += 1
        if damages == _MOST_DAMAGES:
            yield Damage(position, "too many places are damaged; what follows is not read", "unreadable")
            return
        place = _next_stream(file, position + 1, end) if in_streams else None


def parse_page(data: bytes) -> WikiPage:
    """What stands in a page.

    Raises:
        UnicodeDecodeError: its bytes are not valid UTF-8.
        ValueError: it is not XML, or not that of a page.
    """
    data.decode()
    found = _elements(data, _PAGE, final=True)

    def value(name: str) -> str:
        return found[f"page/{name}"][1] if f"page/{name}" in found else ""

    text = None
    if f"{_REVISION}text" in found:
        attributes, written = found[f"{_REVISION}text"]
        # Dumps without texts name their length alone.
        text = None if "deleted" in attributes or (not written and attributes.get("bytes", "0") != "0") else written
    return WikiPage(
        " ".join(value("title").split()),
        value("ns").strip() or "0",
        value("id").strip(),
        "page/redirect" in found,
        value("revision/id").strip(),
        value("revision/timestamp").strip(),
        value("revision/model").strip(),
        text,
    )


class _Cutter:
    """Cuts pieces of a dump into pages, holding no more than one, and of that no more than is read.

    Args:
        most: bytes of the largest page that is read.
        begin: where the first piece begins.
        end: where the part ends whose pages are wanted; None for the end of the file.
        exact: whether bytes of the pieces are bytes of the file.
    """

    def __init__(self, most: int, begin: int, end: int | None, *, exact: bool) -> None:
        self.is_done = False
        self._most = most
        self._whole = begin == 0
        self._end = end
        self._exact = exact
        self._tail = b""
        self._tail_position = begin
        self._page: list[bytes] | None = None
        self._page_position = self._outside_position = begin
        self._size = 0
        self._outside = b""
        self._pages = 0

    @property
    def in_page(self) -> bool:
        """Whether a page has begun that does not end in the pieces so far."""
        return self._page is not None

    def feed(self, position: int, data: bytes) -> Iterator[RawPage | Damage]:
        """The pages that end in the next piece, which begins at a position of the file."""
        split = len(self._tail)
        joined = self._tail + data
        at = 0

        def place(offset: int) -> int:
            known, begin = (self._tail_position, 0) if offset < split else (position, split)
            return known + offset - begin if self._exact else known

        while True:
            if self._page is None:
                start = joined.find(_OPEN, at)
                kept = start if start >= 0 else max(at, len(joined) - len(_OPEN) + 1)
                self._outside += joined[at : min(kept, at + _HEAD_BYTES - len(self._outside))]
                if start < 0:
                    break
                yield from self._between()
                if not self._begin_page(place(start)):
                    return
                at = start
            stop = joined.find(_CLOSE, at)
            begun = at if self._size else at + 1
            another = joined.find(_OPEN, begun, stop if stop >= 0 else len(joined))
            if another >= 0:
                yield Damage(self._page_position, "the page does not end before another begins", "malformed")
                if not self._begin_page(place(another)):
                    return
                at = another
            elif stop < 0:
                kept = max(at, len(joined) - len(_CLOSE) + 1)
                self._add(joined[at:kept])
                break
            else:
                at_end = stop + len(_CLOSE)
                self._add(joined[at:at_end])
                yield self._end_page()
                self._outside_position = place(at_end)
                at = at_end
        self._tail_position, self._tail = place(kept), joined[kept:]

    def finish(self) -> Iterator[Damage]:
        """What is wrong with the end of the file."""
        if self._page is not None:
            yield Damage(self._page_position, "the file ends within a page", "unreadable")
            return
        self._outside = (self._outside + self._tail).rstrip()
        if not self._pages and not self._whole:
            # The part in which the last page begins has seen the end.
            return
        if not self._outside.endswith(_END):
            detail = "the file does not end as a dump does" if self._pages else "the file holds no page of a dump"
            yield Damage(self._outside_position, f"{detail} (no {_END.decode()})", "unreadable")
        elif self._pages:
            yield from self._between()

    def _begin_page(self, position: int) -> bool:
        """Begin a page; False where the part ends before it."""
        self.is_done = self._end is not None and position >= self._end
        self._page, self._size, self._page_position = [], 0, position
        self._pages += 1
        return not self.is_done

    def _end_page(self) -> RawPage:
        assert self._page is not None
        page = RawPage(self._page_position, self._size, b"".join(self._page))
        self._page = None
        return page

    def _add(self, data: bytes) -> None:
        assert self._page is not None
        room = self._most - self._size
        self._size += len(data)
        if room >= len(data):
            self._page.append(data)
        elif room >= 0:
            self._page = [b"".join([*self._page, data[:_COPY_BYTES]])[:_COPY_BYTES]]

    def _between(self) -> Iterator[Damage]:
        """What is wrong with that which stands between two pages. What stands before the first is the head of the
        dump, or belongs to the part before."""
        outside, self._outside = self._outside, b""
        if self._pages and not _BETWEEN.fullmatch(outside):
            yield Damage(self._outside_position, f"{len(outside):,} bytes that belong to no page", "malformed")


class _DamagedError(Exception):
    """A file cannot be read on from a position."""

    def __init__(self, position: int, error: Exception) -> None:
        super().__init__(str(error))
        self.position = position


def _pieces(file: SourceFile, begin: int) -> Iterator[tuple[int, bytes]]:
    """What a file holds from some place on, and where: the byte of the file, the compressed stream in it that a piece
    belongs to, or, in zstd, the byte of what it holds.

    Raises:
        _DamagedError: it cannot be read on.
    """
    position = begin
    ending = _ending(file)
    try:
        with open_bytes(file.path) if ending == ".zst" else open_raw(file.path) as stream:
            if ending in ("", ".zst"):
                if begin:
                    stream.seek(begin)
                while data := stream.read1(_BUFFER_BYTES):  # type: ignore[attr-defined]
                    yield position, data
                    position += len(data)
                return
            stream.seek(begin)
            members = Members(stream, ending, begin)
            try:
                while data := members.read(_BUFFER_BYTES):
                    yield members.member, data
            finally:
                position = members.member
    except READ_ERRORS as error:
        raise _DamagedError(position, error) from None


def _next_stream(file: SourceFile, position: int, end: int | None) -> int | None:
    """Where the next bzip2 stream begins at or after a byte and before the end of a part; None where there is none."""
    try:
        with open_raw(file.path) as stream:
            stream.seek(position)
            held = b""
            while (end is None or position < end) and (data := stream.read(_BUFFER_BYTES)):
                held += data
                found = _STREAM.search(held)
                if found is not None:
                    begin = position + found.start()
                    return begin if end is None or begin < end else None
                kept = max(0, len(held) - _STREAM_BYTES + 1)
                position, held = position + kept, held[kept:]
    except READ_ERRORS:
        return None
    return None


def _ending(file: SourceFile) -> str:
    return PurePosixPath(file.name.lower()).suffix if is_compressed(file.name) else ""


_REVISION = "page/revision/"
_PAGE = frozenset({
    "page/title", "page/ns", "page/id", "page/redirect",
    f"{_REVISION}id", f"{_REVISION}timestamp", f"{_REVISION}model", f"{_REVISION}text",
})  # fmt: skip
_INFO = "mediawiki/siteinfo"
_NAMESPACE = f"{_INFO}/namespaces/namespace"
_HEAD = frozenset({"mediawiki", f"{_INFO}/base", f"{_INFO}/dbname", _NAMESPACE})


def _parse_head(head: bytes) -> Site:
    """What the head of a dump says.

    Raises:
        ValueError: it is not XML, or declares a document type.
    """
    found = _elements(head, _HEAD, final=False)
    attributes, _ = found.get("mediawiki", ({}, ""))
    database = found.get(f"{_INFO}/dbname", ({}, ""))[1].strip().removesuffix("wiki").replace("_", "-")
    language = next((tag for tag in (attributes.get("xml:lang", ""), database) if _TAG.fullmatch(tag.lower())), None)
    hidden = list(Site().hidden)
    for number in _HIDDEN:
        _, name = found.get(f"{_NAMESPACE}/{number}", ({}, ""))
        hidden += [name.strip().lower()] if name.strip() else []
    return Site(found.get(f"{_INFO}/base", ({}, ""))[1].strip(), language, tuple(dict.fromkeys(hidden)))


def _elements(data: bytes, wanted: frozenset[str], *, final: bool) -> dict[str, tuple[dict[str, str], str]]:
    """Attributes and text of some elements, by their paths: of each the last one, of namespaces each by its number.

    Args:
        data: XML in UTF-8.
        wanted: paths of the elements.
        final: whether the XML ends with the data.

    Raises:
        ValueError: it is not XML, is nested as no dump is, or declares a document type.
    """
    found: dict[str, tuple[dict[str, str], list[str]]] = {}
    path: list[str] = []
    open_elements: list[list[str] | None] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(path) == _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} elements inside each other")
        path.append(name)
        key = "/".join(path)
        if f"{key}/" == _REVISION:
            for old in [old for old in found if old.startswith(_REVISION)]:
                del found[old]
        texts: list[str] | None = None
        if key in wanted:
            texts = []
            found[f"{key}/{attributes.get('key')}" if key == _NAMESPACE else key] = (attributes, texts)
        open_elements.append(texts)

    def end(_: str) -> None:
        path.pop()
        open_elements.pop()

    def text(characters: str) -> None:
        if open_elements and open_elements[-1] is not None:
            open_elements[-1].append(characters)

    def refuse(*_: Any) -> None:
        raise ValueError("it declares a document type, and with it entities that may grow without end")

    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, final)
    except expat.ExpatError as error:
        raise ValueError(f"not XML: {error}") from None
    return {key: (attributes, "".join(texts)) for key, (attributes, texts) in found.items()}
