"""Web archives written by hand, for tests."""

from __future__ import annotations

import gzip
from collections.abc import Iterable


def warc_record(kind: str, url: str, content: bytes, *headers: str, length: int | None = None) -> bytes:
    """A record, with more headers than the usual ones; `length` where it is to lie."""
    lines = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        f"WARC-Target-URI: {url}",
        "WARC-Date: 2024-01-02T03:04:05Z",
        "WARC-Record-ID: <urn:uuid:12345678-1234-1234-1234-123456789abc>",
        *headers,
        f"Content-Length: {len(content) if length is None else length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content + b"\r\n\r\n"


def response(url: str, body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """An answer of a server; HTML, unless the headers say something else."""
    given = (
        headers if any(line.startswith("Content-Type") for line in headers) else ("Content-Type: text/html", *headers)
    )
    http = "\r\n".join([f"HTTP/1.1 {status}", *given, "", ""]).encode()
    kind = "Content-Type: application/http; msgtype=response"
    return warc_record("response", url, http + body, kind, length=length)


def page(number: int, size: int = 0) -> bytes:
    """A page of its own."""
    return response(f"http://example.org/{number}", f"<p>Page {number}.{' more' * (size // 5)}</p>".encode())


def members(records: Iterable[bytes]) -> bytes:
    """A gzip member for each record, as archives are compressed."""
    return b"".join(gzip.compress(record, mtime=0) for record in records)
