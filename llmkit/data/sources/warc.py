"""Web archives: pages in WARC files, and their text in WET files, as Common Crawl gives them away."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from llmkit.config.base import Finding
from llmkit.data.extraction.encoding import decode_page
from llmkit.data.extraction.pages import RawPage, extract_pages
from llmkit.data.sources.base import (
    SLICE_BYTES,
    Broken,
    Damage,
    Reason,
    Record,
    Slice,
    file_slices,
    make_record,
    readable_copy,
)
from llmkit.data.sources.config import WarcSource
from llmkit.data.sources.files import SourceFile, check_files, find_files, is_compressed
from llmkit.data.sources.html import OpenedPage, check_extraction, page_record
from llmkit.data.sources.warc_content import ContentError, decoded_content
from llmkit.data.sources.warc_records import WarcRecord, is_gzip, plain_bounds, warc_records
from llmkit.errors import MissingDependencyError

_ENDINGS = (".warc", ".wet")
_PAGES = ("response", "resource", "conversion", "continuation")
_MARKUP = ("text/html", "application/xhtml+xml")
_COPY_BYTES = 4096


class WarcReader:
    """Reads each answer, resource and conversion of an archive: HTML by its main text, plain text as it is.

    What only goes with them (requests, metadata, notes on the archive, notes that a page has not changed) is no record.
    A document's path is its URL; its metadata name the `record` (file and byte), when it was `fetched`, the date of the
    last change (`date`) where the server told it, the `title`, the `languages` that a crawler found (ISO 639-3), and
    why the crawler kept only its beginning (`truncated`), where it says so.
    """

    def __init__(self, config: WarcSource) -> None:
        self._config = config

    def check(self) -> Iterator[Finding]:
        """Libraries that are missing, and patterns that mean no file."""
        if _fastwarc_is_missing():
            yield Finding(_NEEDS_FASTWARC, hint=_INSTALL)
        yield from check_extraction(self._config.extraction)
        yield from check_files(self._config.files, _ENDINGS)

    def slices(self) -> list[Slice]:
        """Small files together; large ones in parts between two records, as far as their compression allows."""
        return file_slices(find_files(self._config.files, _ENDINGS), _bounds)

    def read(self, piece: Slice) -> Iterator[Record]:
        """A record for each answer, resource and conversion, and `Broken` for each place that is damaged.

        Raises:
            MissingDependencyError: an extra is not installed.
        """
        if _fastwarc_is_missing():
            raise MissingDependencyError(_NEEDS_FASTWARC, hint=_INSTALL)
        for opened, found in extract_pages(self._config.extraction, self._pages(piece)):
            if isinstance(opened, OpenedPage):
                record = page_record(self._config, opened, found)
                yield _placed(record, dict(opened.metadata)) if isinstance(record, Broken) else record
            else:
                yield opened

    def _pages(self, piece: Slice) -> Iterator[tuple[OpenedPage | Record, RawPage]]:
        for file in piece.files:
            for record in warc_records(file, self._config.max_bytes, piece.begin, piece.end):
                if isinstance(record, Damage):
                    detail = f"byte {record.position:,}: {record.detail}"
                    yield Broken(self._config.label, file.name, detail, reason=record.reason), RawPage(b"")
                elif record.headers.get("warc-type", "").lower() in _PAGES:
                    yield self._page(file, record)

    def _page(self, file: SourceFile, record: WarcRecord) -> tuple[OpenedPage | Record, RawPage]:
        """A page to take the text out of; or a record that is settled already, and an empty page in its place."""
        url = record.headers.get("warc-target-uri", "").strip("<>")
        metadata = {"record": f"{file.name}@{record.position}"}
        if record.headers.get("warc-date"):
            metadata["fetched"] = record.headers["warc-date"][:10]
        for name, header in _METADATA:
            if record.headers.get(header):
                metadata[name] = record.headers[header]
        try:
            data, kind, charset = self._body(record, metadata)
            if kind in _MARKUP:
                opened = OpenedPage(url, data[:_COPY_BYTES], tuple(metadata.items()))
                return opened, RawPage(data, charset)
            plain = make_record(self._config, decode_page(data, charset), url, metadata)
            return _placed(plain, metadata) if isinstance(plain, Broken) else plain, RawPage(b"")
        except UnicodeDecodeError as error:
            detail = f"byte {error.start:,}: not valid {error.encoding} ({error.reason})"
            return self._broken(file, record, url, detail, "encoding", error.object), RawPage(b"")
        except _NoPageError as error:
            return self._broken(file, record, url, str(error), error.reason, error.content), RawPage(b"")

    def _broken(
        self, file: SourceFile, record: WarcRecord, url: str, detail: str, reason: Reason, content: bytes
    ) -> Broken:
        where = f"byte {record.position:,}: " + (f"{url}: " if url else "")
        return Broken(self._config.label, file.name, where + detail, readable_copy(content), reason)

    def _body(self, record: WarcRecord, metadata: dict[str, str]) -> tuple[bytes, str, str | None]:
        """The bytes of a page, its type and its charset.

        Raises:
            _NoPageError: there is no page in the record.
        """
        content = record.content
        most = self._config.max_bytes
        if content is None:
            raise _NoPageError(f"the record has {record.length:,} bytes, more than {most:,}", "too large")
        if "warc-segment-number" in record.headers:
            raise _NoPageError("the record is a part of a longer one; parts are not joined", "malformed")
        kind, _, parameters = record.headers.get("content-type", "").partition(";")
        charset = _charset(parameters)
        if kind.strip().lower() == "application/http":
            answer = _parsed(record, content)
            kind, charset = answer.http_content_type or "text/html", answer.http_charset
            if answer.http_last_modified is not None:
                metadata["date"] = answer.http_last_modified.strftime("%Y-%m-%d")
            status = answer.http_headers.status_code
            if not 200 <= status < 300:
                raise _NoPageError(f"the answer is no page (status {status})", "no text")
            _check_kind(kind)
            content = _decoded(record, content, most)
        kind = _check_kind(kind)
        return content, kind, charset


_METADATA = (("languages", "warc-identified-content-language"), ("truncated", "warc-truncated"))


class _NoPageError(Exception):
    """There is no page in a record, for this reason; `content` is what is shown of it."""

    def __init__(self, detail: str, reason: Reason, content: bytes = b"") -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.content = content[:_COPY_BYTES]


def _placed(broken: Broken, metadata: Mapping[str, str]) -> Broken:
    """A page without text, known by its place in the archive as all broken records are."""
    name, _, position = metadata["record"].rpartition("@")
    return replace(broken, path=name, detail=f"byte {int(position):,}: {broken.path}: {broken.detail}")


def _bounds(file: SourceFile) -> Sequence[int]:
    if is_gzip(file):
        return [*range(0, file.size, SLICE_BYTES), file.size]
    return [0, file.size] if is_compressed(file.name) else plain_bounds(file, SLICE_BYTES)


def _check_kind(kind: str) -> str:
    kind = kind.strip().lower()
    if kind not in (*_MARKUP, "text/plain"):
        raise _NoPageError(f"its type is {kind[:100] or 'not told'}, and neither HTML nor plain text", "no text")
    return kind


def _charset(parameters: str) -> str | None:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip()
    return None


def _parsed(record: WarcRecord, content: bytes, decode: Literal["none", "transfer"] = "none") -> Any:
    """The answer of a server, with its header read and its body ready to be."""
    from fastwarc.warc import ArchiveIterator

    try:
        found = next(iter(ArchiveIterator(io.BytesIO(record.header + content), stream_detect=False, parse_http=False)))
        found.parse_http(auto_decode=decode)
    except (OSError, ValueError, StopIteration) as error:
        raise _NoPageError(f"the answer cannot be read: {error}", "malformed", content) from None
    if found.http_headers is None or found.http_headers.status_code is None:
        raise _NoPageError("the answer does not begin as HTTP does", "malformed", content)
    return found


def _decoded(record: WarcRecord, content: bytes, most: int) -> bytes:
    """The body of an answer, in one piece and decompressed as its header says."""
    try:
        answer = _parsed(record, content, "transfer")
        encodings = ", ".join(value for name, value in answer.http_headers if name.lower() == "content-encoding")
        body = decoded_content(answer.reader.read(most + 1), encodings, most, cut="warc-truncated" in record.headers)
    except (OSError, ContentError) as error:
        # Many crawlers keep a body as they have decoded it, under the header that it came with.
        body = _parsed(record, content).reader.read()
        if not body.lstrip().startswith(b"<"):
            raise _NoPageError(f"the body of the answer cannot be decoded: {error}", "malformed", body) from None
    if len(body) > most:
        raise _NoPageError(f"the page is longer than {most:,} bytes", "too large", body)
    return body


_NEEDS_FASTWARC = "reading web archives needs fastwarc, which is not installed."
_INSTALL = "pip install 'llmkit[web]'"


def _fastwarc_is_missing() -> bool:
    try:
        __import__("fastwarc")
    except ImportError:
        return True
    return False
