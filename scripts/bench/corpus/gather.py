"""A corpus of real pages and texts from the machine it runs on, made for `scripts/bench/data.py`.

Pages (HTML) and plain texts are found below folders, put into an order that their names' digests give, and written
as what both competitors read: pages as responses in WARC files, compressed record by record as a crawl has them, plain
texts as JSON lines. One in five documents is followed by a copy with edits, from a few words to a third of them, so
that there is something for deduplication to find and something for it to leave alone. Where the machine has less than
is asked for, the whole is gone through again with edits everywhere.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

PAGE_ENDINGS = (".html", ".htm", ".xhtml")
TEXT_ENDINGS = (".txt", ".md", ".rst", ".py", ".txt.gz", ".gz")
PAGE_SHARE = 0.7
COPIES = 0.2
EDITS = (0.003, 0.01, 0.03, 0.1, 0.3)
SMALLEST, LARGEST = 400, 1_000_000
_WORD = re.compile(r"\w+")
_TEXT_OF_PAGE = re.compile(r">[^<]+<")


@dataclass(frozen=True)
class Found:
    """A document of the corpus.

    Args:
        name: where it comes from, as the path below its folder, with a number for a copy.
        text: the page or the plain text.
        page: whether it is HTML.
    """

    name: str
    text: str
    page: bool


@dataclass
class Part:
    """Files that were written, and what is in them."""

    folder: Path
    documents: int = 0
    pages: int = 0
    size: int = 0

    def summary(self) -> dict[str, int]:
        """For the results."""
        return {"documents": self.documents, "pages": self.pages, "bytes": self.size}


def candidates(folders: list[Path], endings: tuple[str, ...], seed: int) -> list[tuple[str, Path]]:
    """Files below the folders by name, in an order that depends on their names and the seed alone."""
    found = []
    for folder in folders:
        files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            name = f"{folder.name}/{path.relative_to(folder)}" if path != folder else folder.name
            if name.endswith(endings) and not path.is_symlink():
                found.append((name, path))
    return sorted(found, key=lambda pair: digest(f"{seed} {pair[0]}"))


def digest(text: str) -> bytes:
    """What decides an order without following the names' own."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()


def read_text(path: Path) -> str | None:
    """The text of a file; None where it is too short, too long or no UTF-8."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if not SMALLEST <= len(data) <= LARGEST:
            return None
        text = data.decode()
    except (OSError, EOFError, UnicodeDecodeError):
        return None
    return None if "\0" in text else text


def edited(text: str, page: bool, numbers: random.Random) -> str:
    """The text with some of its words replaced by other words of it; of a page, only words between tags."""
    rate = numbers.choice(EDITS)
    words = _WORD.findall(re.sub(r"<[^>]*>", " ", text) if page else text) or ["word"]

    def replace(found: re.Match[str]) -> str:
        return numbers.choice(words) if numbers.random() < rate else found.group()

    if not page:
        return _WORD.sub(replace, text)
    return _TEXT_OF_PAGE.sub(lambda part: _WORD.sub(replace, part.group()), text)


def endless(files: list[tuple[str, Path]], page: bool, seed: int) -> Iterator[Found]:
    """Documents of the files and copies of them, again and again."""
    for turn in count():
        for name, path in files:
            text = read_text(path)
            if text is None:
                continue
            if turn == 0:
                yield Found(name, text, page)
            numbers = random.Random(f"{seed} {turn} {name}")
            if turn or numbers.random() < COPIES:
                yield Found(f"{name}#{turn + 1}", edited(text, page, numbers), page)


def blend(pages: Iterator[Found], texts: Iterator[Found]) -> Iterator[Found]:
    """Pages and texts by turns, so that the pages have `PAGE_SHARE` of the bytes at any time."""
    sizes = {True: 0, False: 0}
    while True:
        page = sizes[True] * (1 - PAGE_SHARE) <= sizes[False] * PAGE_SHARE
        found = next(pages if page else texts)
        sizes[page] += len(found.text)
        yield found


class Writer:
    """Writes documents to numbered files of some size, pages apart from texts; a context manager.

    Args:
        folder: where to.
        file_bytes: a file is closed when it has this many bytes of text.
        page_ending: of the files of pages.
    """

    def __init__(self, folder: Path, file_bytes: int) -> None:
        folder.mkdir(parents=True)
        self.part = Part(folder)
        self._file_bytes = file_bytes
        self._files: dict[bool, BinaryIO | None] = {True: None, False: None}
        self._room = {True: 0, False: 0}
        self._number = {True: 0, False: 0}

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            if file is not None:
                file.close()

    def write(self, found: Found) -> None:
        """Append a document."""
        data = found.text.encode()
        file = self._files[found.page]
        if file is None or self._room[found.page] <= 0:
            if file is not None:
                file.close()
            name = f"{'pages' if found.page else 'texts'}-{self._number[found.page]:04d}"
            file = (self.part.folder / f"{name}.{'warc.gz' if found.page else 'jsonl'}").open("wb")
            self._files[found.page] = file
            self._number[found.page] += 1
            self._room[found.page] = self._file_bytes
        if found.page:
            file.write(gzip.compress(warc_record(found.name, data), 6, mtime=0))
        else:
            file.write(json.dumps({"id": found.name, "text": found.text}).encode() + b"\n")
        self._room[found.page] -= len(data)
        self.part.documents += 1
        self.part.pages += found.page
        self.part.size += len(data)


def warc_record(name: str, page: bytes) -> bytes:
    """A page as a response in a web archive (ISO 28500)."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n\r\n" % len(page)
    identifier = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    address = html.escape(name).replace(" ", "%20").replace("#", "?copy=")
    head = (
        "WARC/1.0\r\nWARC-Type: response\r\n"
        f"WARC-Record-ID: <urn:uuid:{identifier[:8]}-{identifier[8:12]}-{identifier[12:16]}-"
        f"{identifier[16:20]}-{identifier[20:]}>\r\n"
        f"WARC-Target-URI: http://pages.example/{address}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
        "WARC-Identified-Payload-Type: text/html\r\nContent-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(answer) + len(page)}\r\n\r\n"
    )
    return head.encode() + answer + page + b"\r\n\r\n"


def gather(work: Path, options: Any) -> dict[str, Part]:
    """Write `first`, `second` (as much again) and `sample` (one document in some of `first`) below a folder.

    Args:
        work: an empty folder.
        options: `pages` and `texts`, folders; `megabytes` of the first part; `one_in`, of the sample; `seed`.
    """
    pages = candidates(options.pages, PAGE_ENDINGS, options.seed)
    texts = candidates(options.texts, TEXT_ENDINGS, options.seed)
    if not pages or not texts:
        raise SystemExit("no pages or no texts below the folders; name others with --pages and --texts")
    documents = blend(endless(pages, True, options.seed), endless(texts, False, options.seed))
    target = options.megabytes * 1_000_000
    with (
        Writer(work / "first", file_bytes(target)) as first,
        Writer(work / "sample", file_bytes(target // options.one_in)) as sample,
    ):
        while first.part.size < target:
            found = next(documents)
            if first.part.documents % options.one_in == 0:
                sample.write(found)
            first.write(found)
    with Writer(work / "second", file_bytes(target)) as second:
        while second.part.size < target:
            second.write(next(documents))
    return {"first": first.part, "second": second.part, "sample": sample.part}


def file_bytes(total: int) -> int:
    """Bytes of one file: files enough for processes to share the work, and none above 16 MB."""
    return min(16_000_000, max(1, total // 16))
