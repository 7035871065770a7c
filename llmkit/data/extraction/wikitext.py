"""Plain text of wikitext, MediaWiki's markup; runs in a guarded worker.

What is written stays: paragraphs, headings, lists, quotations, code, the words of links. What only a wiki can draw or
work out goes: templates, tables, references, files, categories, formulas, galleries, comments.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mwparserfromhell.parser import CTokenizer, tokens
from mwparserfromhell.parser.tokenizer import Tokenizer

# Signs for the second pass, which sees lines. No XML file can hold these characters, and no entity stands for them.
_BULLET, _NUMBER, _INDENT, _TERM, _HEADING, _APOSTROPHE, _LITERAL = "\x01\x02\x03\x04\x05\x06\x07"
_LISTS = {"*": _BULLET, "#": _NUMBER, ":": _INDENT, ";": _TERM}
_REMOVED = frozenset({
    "categorytree", "ce", "chem", "gallery", "graph", "hiero", "imagemap", "includeonly", "indicator", "inputbox",
    "mapframe", "maplink", "math", "ref", "references", "score", "script", "section", "style", "table", "templatedata",
    "templatestyles", "timeline",
})  # fmt: skip
_CODE = frozenset({"pre", "source", "syntaxhighlight"})
_BLOCKS = frozenset({
    "blockquote", "br", "center", "dd", "div", "dl", "dt", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "ol", "p", "poem",
    "ul",
})  # fmt: skip
_MEDIA = re.compile(
    r":.*\.(?:jpe?g|png|gif|svg|webp|tiff?|xcf|og[agv]|opus|webm|mp[34]|mpe?g|wav|flac|midi?|pdf|djvu|stl)\s*$",
    re.IGNORECASE | re.DOTALL,
)
"""Names of files, under whichever of its names a wiki calls their namespace."""
_LANGUAGE_LINK = re.compile(r"^\[\[[a-z]{2,3}(?:-[a-z-]+)?:[^\[\]|\n]+\]\][ \t]*$", re.MULTILINE)
"""The same article in another language, as older dumps have it."""
_STRAY_TAG = re.compile(r"</?(?:ref|references|br|div|span|small|big|center|p|i|b|u|sup|sub|table|tr|td|th)\b[^<>\n]*>")
_SWITCH = re.compile(r"__[A-Z_\u00c0-\uffff]+__")
_QUOTES = re.compile(r"'{2,}")
_DEEPEST = 8
"""Lists are indented no further than this."""
_LIST = re.compile(f"[{_BULLET}{_NUMBER}{_INDENT}{_TERM}]+")
_SPACES = re.compile(r"[ \t\xa0]+")
_EMPTIED = re.compile(r"\([\s,;:]*\)|(?<=\()[\s,;:]+(?=\S)")
_BEFORE_STOP = re.compile(r" +(?=[,.](?:\s|$))")


def plain_text(argument: tuple[str, Sequence[str]]) -> str:
    """The plain text of an article.

    Args:
        argument: the wikitext, and the names, in lower case, of the namespaces whose links show nothing (files,
            categories).
    """
    wikitext, hidden = argument
    # The library's tree of its tokens takes six times as long as the tokens.
    found = (CTokenizer or Tokenizer)().tokenize(_LANGUAGE_LINK.sub("", wikitext), 0, True)
    return _in_paragraphs(_Shown(found, frozenset(hidden)).until().split("\n"))


class _Shown:
    """What is shown of wikitext, with signs for the second pass.

    Args:
        found: tokens of the wikitext.
        hidden: names of the namespaces whose links show nothing.
    """

    def __init__(self, found: Iterable[Any], hidden: frozenset[str]) -> None:
        self._found = iter(found)
        self._hidden = hidden
        self._end: type | None = None

    def until(self, *ends: type) -> str:
        """What is shown up to the next token of these kinds that belongs to no piece of markup in between."""
        pieces: list[str] = []
        for token in self._found:
            kind = type(token)
            if kind is tokens.Text:
                pieces.append(token["text"])
            elif kind in ends:
                self._end = kind
                break
            elif kind in _OPENED:
                pieces.append(_OPENED[kind](self, token))
        return "".join(pieces)

    def nothing(self, token: Any) -> str:
        """Templates, parameters of templates, and comments."""
        self.until(_CLOSED[type(token)])
        return ""

    def link(self, token: Any) -> str:
        """A link to a page, shown by its text or else by the name of the page."""
        title = self.until(tokens.WikilinkSeparator, tokens.WikilinkClose).strip()
        shown = title.removeprefix(":")
        if self._end is tokens.WikilinkSeparator:
            shown = self.until(tokens.WikilinkClose)
        namespace, colon, _ = title.partition(":")
        if colon and namespace.strip().lower().replace("_", " ") in self._hidden:
            return ""
        return "" if _MEDIA.search(title) else shown

    def external_link(self, token: Any) -> str:
        """A link to another site: its text, or its URL where that stands in the text."""
        url = self.until(tokens.ExternalLinkSeparator, tokens.ExternalLinkClose)
        if self._end is tokens.ExternalLinkSeparator:
            return self.until(tokens.ExternalLinkClose)
        return "" if token.get("brackets") else url

    def entity(self, token: Any) -> str:
        """A character that is written by name or number."""
        written = "&"
        for part in self._found:
            if type(part) is tokens.HTMLEntityEnd:
                break
            written += "#" if type(part) is tokens.HTMLEntityNumeric else part.get("char") or part.get("text") or ""
        return html.unescape(f"{written};").replace("'", _APOSTROPHE)

    def heading(self, token: Any) -> str:
        """A heading, on a line of its own."""
        return f"\n{_HEADING}{token['level']}{self.until(tokens.HeadingEnd).strip()}\n"

    def tag(self, token: Any) -> str:
        """A tag with what it holds; tables and the marks of lists come as tags as well."""
        markup = token.get("wiki_markup")
        name = self.until(tokens.TagAttrStart, tokens.TagCloseOpen, tokens.TagCloseSelfclose).strip().lower()
        if self._end is tokens.TagAttrStart:
            self.until(tokens.TagCloseOpen, tokens.TagCloseSelfclose)
        contents = ""
        if self._end is tokens.TagCloseOpen:
            contents = self.until(tokens.TagOpenClose)
            self.until(tokens.TagCloseClose)
        if markup in _LISTS:
            return _LISTS[markup]
        if name in _REMOVED:
            return ""
        if name in _CODE:
            return "\n" + "\n".join(_LITERAL + line for line in contents.strip("\n").split("\n")) + "\n"
        if name == "nowiki":
            return contents.replace("'", _APOSTROPHE)
        if name == "li":
            return f"\n{_BULLET}{contents.strip()}" + ("\n" if contents else "")
        return f"\n{contents}\n" if name in _BLOCKS else contents


_CLOSED: dict[type, type] = {
    tokens.TemplateOpen: tokens.TemplateClose,
    tokens.ArgumentOpen: tokens.ArgumentClose,
    tokens.CommentStart: tokens.CommentEnd,
}
_OPENED: dict[type, Callable[[_Shown, Any], str]] = {
    **dict.fromkeys(_CLOSED, _Shown.nothing),
    tokens.WikilinkOpen: _Shown.link,
    tokens.ExternalLinkOpen: _Shown.external_link,
    tokens.HTMLEntityStart: _Shown.entity,
    tokens.HeadingStart: _Shown.heading,
    tokens.TagOpenOpen: _Shown.tag,
}


def _in_paragraphs(lines: Sequence[str]) -> str:
    """The second pass: lists and headings are written as text, and what is left of markup goes."""
    written: list[str] = []
    headings: list[tuple[int, str]] = []
    counts: list[tuple[str, int]] = []
    for line in lines:
        if line.startswith(_HEADING):
            level = int(line[1])
            # A heading is written once something stands below it: many have nothing but references or a gallery.
            headings = [(depth, title) for depth, title in headings if depth < level]
            headings.append((level, _clean(line[2:])))
            continue
        marks = _LIST.match(line)
        if marks is not None:
            text = _clean(line[marks.end() :])
            if not text:
                continue
            text = _list_mark(marks[0], counts) + text
        else:
            counts = []
            text = line.replace(_LITERAL, "") if line.startswith(_LITERAL) else _clean(line)
        if text.strip():
            for _, title in headings:
                written += ["", title, ""]
            headings = []
        written.append(text)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(written)).strip("\n")


def _list_mark(marks: str, counts: list[tuple[str, int]]) -> str:
    """What stands before an item of a list; `counts` has the kind and the number of the items before it, by depth."""
    depth = len(marks)
    if len(counts) >= depth and counts[depth - 1][0] != marks[-1]:
        del counts[depth - 1 :]
    del counts[depth:]
    counts += [(mark, 0) for mark in marks[len(counts) :]]
    number = counts[-1][1] + 1
    counts[-1] = (marks[-1], number)
    if marks[-1] in (_INDENT, _TERM):
        return ""
    return "  " * min(depth - 1, _DEEPEST) + (f"{number}. " if marks[-1] == _NUMBER else "- ")


def _clean(line: str) -> str:
    """A line without what is left of markup."""
    if line.lstrip().startswith(("{|", "|")):
        # Of a table that never ends.
        return ""
    line = _unquoted(line)
    # Most lines hold none of these, and a look costs less than a search.
    if "<" in line:
        line = _STRAY_TAG.sub("", line)
    if "__" in line:
        line = _SWITCH.sub("", line)
    line = _SIGN.sub(lambda sign: _WRITTEN.get(sign[0], ""), line)
    if "(" in line:
        line = _EMPTIED.sub("", line)
    return _BEFORE_STOP.sub("", _SPACES.sub(" ", line)).strip()


_SIGN = re.compile(f"[{_BULLET}{_NUMBER}{_INDENT}{_TERM}{_HEADING}{_LITERAL}{_APOSTROPHE}]")
_WRITTEN = {_APOSTROPHE: "'", _INDENT: ": "}


def _unquoted(line: str) -> str:
    """A line without the apostrophes that mean italics and bold; those that are meant stay (MediaWiki, doQuotes)."""
    if "''" not in line:
        return line
    runs = list(_QUOTES.finditer(line))
    lengths = [len(run[0]) for run in runs]
    bold = sum(length in (3, 4) or length >= 5 for length in lengths)
    italics = sum(length == 2 or length >= 5 for length in lengths)
    meant = None
    if bold % 2 and italics % 2:
        threes = [run.start() for run in runs if len(run[0]) == 3]
        # "l'''eau''" is an apostrophe and italics: after one letter, else after a word, else after a blank.
        meant = min(threes, key=lambda start: _before(line, start), default=None)
    pieces: list[str] = []
    end = 0
    for run in runs:
        length = len(run[0])
        kept = 1 if run.start() == meant or length == 4 else max(0, length - 5)
        pieces += [line[end : run.start()], "'" * kept]
        end = run.end()
    return "".join([*pieces, line[end:]])


def _before(line: str, start: int) -> int:
    if start == 0 or line[start - 1] == " ":
        return 2
    return 0 if start == 1 or line[start - 2] == " " else 1
