"""Dumps of a wiki written by hand, for tests."""

from __future__ import annotations

import bz2
from collections.abc import Sequence
from xml.sax.saxutils import escape

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>dewiki</dbname>
    <base>https://de.wikipedia.org/wiki/Wikipedia:Hauptseite</base>
    <generator>MediaWiki 1.43</generator>
    <case>first-letter</case>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Diskussion</namespace>
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
"""
TAIL = "</mediawiki>\n"


def wiki_page(
    title: str, text: str, number: int = 1, *, namespace: int = 0, redirect: str = "", model: str = "wikitext"
) -> str:
    """A page with one revision, as MediaWiki writes it."""
    return f"""  <page>
    <title>{escape(title)}</title>
    <ns>{namespace}</ns>
    <id>{number}</id>
{f'    <redirect title="{escape(redirect)}" />' if redirect else ""}
    <revision>
      <id>{number + 1000}</id>
      <parentid>{number + 500}</parentid>
      <timestamp>2024-01-02T03:04:05Z</timestamp>
      <contributor><username>Ann</username><id>7</id></contributor>
      <comment>a comment</comment>
      <model>{model}</model>
      <format>text/x-wiki</format>
      <text bytes="{len(text.encode())}" sha1="x" xml:space="preserve">{escape(text)}</text>
      <sha1>x</sha1>
    </revision>
  </page>
"""


def dump(pages: Sequence[str]) -> bytes:
    """A whole dump."""
    return (HEAD + "".join(pages) + TAIL).encode()


def multistream(pages: Sequence[str], together: int = 1) -> bytes:
    """A dump in bzip2 streams: the head, some pages in each, the end."""
    groups = ["".join(pages[start : start + together]) for start in range(0, len(pages), together)]
    return b"".join(bz2.compress(part.encode()) for part in (HEAD, *groups, TAIL))
