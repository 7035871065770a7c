from __future__ import annotations

import gzip

import pytest

from llmkit.data.web.sitemaps import Sitemap, parse_sitemap

PAGES = b"""<?xml version="1.0" encoding="UTF-8"?>
<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">
  <url><loc>http://a.example/1?x=1&amp;y=2</loc><lastmod>2024-01-01</lastmod></url>
  <url><loc>
    http://a.example/2 </loc></url>
  <url><loc><![CDATA[http://a.example/3]]></loc></url>
</urlset>"""
INDEX = b"""<sitemapindex xmlns="x"><sitemap><loc>http://a.example/s1.xml</loc></sitemap></sitemapindex>"""
EXPECTED = Sitemap(["http://a.example/1?x=1&y=2", "http://a.example/2", "http://a.example/3"], False)


def test_xml_plain_and_compressed() -> None:
    assert parse_sitemap(PAGES, 10_000) == EXPECTED
    assert parse_sitemap(gzip.compress(PAGES), 10_000) == EXPECTED
    assert parse_sitemap(PAGES.replace(b"<loc", b"<s:loc").replace(b"</loc", b"</s:loc"), 10_000) == EXPECTED
    assert parse_sitemap(INDEX, 10_000) == Sitemap(["http://a.example/s1.xml"], True)


def test_lines_of_text() -> None:
    assert parse_sitemap(b"\xef\xbb\xbfhttp://a.example/1\r\n\r\nhttp://a.example/2\n", 1000).urls == [
        "http://a.example/1",
        "http://a.example/2",
    ]


def test_entities_do_not_grow() -> None:
    entities = b'<!DOCTYPE x [<!ENTITY a "http://a.example/">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + level, b"&%c;" % (97 + level) * 10) for level in range(9)
    )
    found = parse_sitemap(entities + b"]><urlset><url><loc>&j;</loc></url></urlset>", 10_000)
    assert found.urls == ["&j;"]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "lists nothing"),
        (b"<html><body>Not here</body></html>", "no sitemap"),
        (b"<urlset></urlset>", "lists nothing"),
        (gzip.compress(PAGES)[:-30], "cut off"),
        (b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 50, "decompressed"),
        (gzip.compress(bytes(1_000_000)), "longer than 10,000"),
    ],
)
def test_what_is_no_sitemap(body: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_sitemap(body, 10_000)
