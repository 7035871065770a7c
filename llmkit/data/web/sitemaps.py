"""Sitemaps: files in which a site lists its pages (sitemaps.org)."""

from __future__ import annotations

import html
import re
import zlib
from dataclasses import dataclass

_LOCATION = re.compile(rb"<(?:[\w.-]{1,40}:)?loc\s*>\s*(?:<!\[CDATA\[)?\s*([^<\]]*)")
_INDEX = re.compile(rb"<(?:[\w.-]{1,40}:)?sitemapindex[\s>]")
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Sitemap:
    """What a sitemap lists.

    Args:
        urls: as they are written there, in its order.
        is_index: whether they are further sitemaps.
    """

    urls: list[str]
    is_index: bool


def parse_sitemap(body: bytes, largest: int) -> Sitemap:
    """The URLs of a sitemap: XML, or text with one URL on each line; plain or compressed with gzip.

    Locations are found by their tags alone. No XML parser sees the file, and so none of what XML parsers can be made to
    do (entities that grow, files that are read) happens.

    Args:
        body: the file.
        largest: bytes that it may have decompressed.

    Raises:
        ValueError: it cannot be read, or holds no URL; the message is half of a sentence.
    """
    if body.startswith(_GZIP_MAGIC):
        body = _decompressed(body, largest)
    found = [html.unescape(url.decode("utf-8", "replace")).strip() for url in _LOCATION.findall(body)]
    if not found and b"<" not in body[:1000]:
        lines = (line.strip() for line in body.decode("utf-8-sig", "replace").splitlines())
        found = [line for line in lines if line]
    if not found:
        raise ValueError("it is no sitemap, or one that lists nothing")
    return Sitemap(found, _INDEX.search(body) is not None)


def _decompressed(body: bytes, largest: int) -> bytes:
    decoder = zlib.decompressobj(31)
    try:
        text = decoder.decompress(body, largest)
    except zlib.error as error:
        raise ValueError(f"it cannot be decompressed: {error}") from None
    if not decoder.eof:
        raise ValueError("it is cut off" if len(text) < largest else f"it is longer than {largest:,} bytes")
    return text
