"""The main text of a web page, by the names of its elements alone."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser

_LEFT_OUT = (
    "aside", "button", "canvas", "dialog", "footer", "head", "iframe", "nav", "noscript", "object", "script", "select",
    "style", "svg", "template",
)  # fmt: skip
_MAIN = ("main", "article")
_LINES = dict.fromkeys(
    ("address", "body", "caption", "center", "dd", "details", "div", "dt", "fieldset", "figcaption", "form", "legend",
     "li", "summary", "tbody", "tfoot", "thead", "tr"),
    1,
)  # fmt: skip
_PARAGRAPHS = dict.fromkeys(
    ("article", "blockquote", "dl", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "main", "ol", "p",
     "pre", "section", "table", "ul"),
    2,
)  # fmt: skip
_BREAKS = {**_LINES, **_PARAGRAPHS}
_CELLS = ("td", "th")
_VOID = frozenset({
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr",
})  # fmt: skip
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Page:
    """What was found in a web page.

    Args:
        text: the main text.
        title: text of its `title`.
        language: the `lang` that it declares.
    """

    text: str
    title: str | None
    language: str | None


def extract_page(html: str) -> Page:
    """The main text of a web page, its title and its language.

    Scripts, styles, navigation, headers, footers and asides are left out. Where the page marks its main part (`main`,
    `article`), only that is taken. Items, rows and divisions begin on a new line, paragraphs after an empty one; cells
    of a table are set apart by tabs, and the white space of `pre` is kept. Broken markup is read as far as it goes;
    nothing in it raises.
    """
    parser = _Parser()
    parser.feed(html)
    parser.close()
    title = _SPACE.sub(" ", "".join(parser.title)).strip()
    return Page(parser.main.text() or parser.body.text(), title or None, parser.language)


class _Text:
    """Text that grows: breaks and spaces are remembered and written before the next word, so that none stands twice."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._breaks = 0
        self._cell = False
        self._space = False

    def text(self) -> str:
        return re.sub(r"\n{3,}", "\n\n", "".join(self._pieces)).strip("\n")

    def block(self, breaks: int) -> None:
        self._breaks = max(self._breaks, breaks)

    def line(self) -> None:
        self._breaks = min(self._breaks + 1, 2)

    def cell(self) -> None:
        self._cell = True

    def words(self, data: str) -> None:
        words = _SPACE.sub(" ", data)
        if words in ("", " "):
            self._space |= words == " "
            return
        self._space |= words[0] == " "
        self._append(words.strip(" "))
        self._space = words[-1] == " "

    def preformatted(self, data: str) -> None:
        self._space = False
        self._append(data)

    def _append(self, text: str) -> None:
        between = "\n" * self._breaks or ("\t" if self._cell else " " if self._space else "")
        self._pieces.append(between + text if self._pieces else text)
        self._breaks, self._cell, self._space = 0, False, False


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.body = _Text()
        self.main = _Text()
        self.title: list[str] = []
        self.language: str | None = None
        self._open: list[str] = []
        # Elements now open, by name: tells without a search whether an end tag closes anything.
        self._inside: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "html":
            self.language = dict(attrs).get("lang") or None
        self._break(tag)
        if tag not in _VOID:
            self._open.append(tag)
            self._inside[tag] += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        # What was left open inside is closed with it, so that an unclosed `nav` hides no more than its parent.
        if self._inside[tag]:
            while (closed := self._open.pop()) != tag:
                self._inside[closed] -= 1
            self._inside[tag] -= 1
        if tag not in _CELLS:
            self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._inside["title"] and not self._inside["svg"]:
            self.title.append(data)
            return
        for text in self._targets():
            if self._inside["pre"]:
                text.preformatted(data)
            else:
                text.words(data)

    def _break(self, tag: str) -> None:
        for text in self._targets():
            if tag in _BREAKS:
                text.block(_BREAKS[tag])
            elif tag == "br":
                text.line()
            elif tag in _CELLS:
                text.cell()

    def _targets(self) -> list[_Text]:
        """The texts that what comes now belongs to."""
        inside = self._inside
        in_main = any(inside[tag] for tag in _MAIN)
        # A header outside the main part is the site's, one inside of it holds the heading.
        if any(inside[tag] for tag in _LEFT_OUT) or (inside["header"] and not in_main):
            return []
        return [self.body, self.main] if in_main else [self.body]
