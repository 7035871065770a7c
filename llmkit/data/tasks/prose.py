"""Plain sentences out of docstrings: paragraphs, first sentences, markup taken away."""

from __future__ import annotations

import re

_ROLE = re.compile(r":[a-z:+-]+:`([^`]*)`")
_LITERAL = re.compile(r"``([^`]*)``")
_LINK = re.compile(r"`([^`<]+?)\s*(?:<[^`>]*>)?`_+")
_QUOTED = re.compile(r"(?<!\w)`([^`']+)'(?!\w)")
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}([A-Za-z_][\w ]*)\*{1,2}(?![\w*])")
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!vs\.)(?<!cf\.)(?<![Nn]o\.)\s+")
_LIST_ITEM = re.compile(r"^\s*([-*+o]|\d+[.)])\s")
# Doctest prompts, fields and directives, rules of dashes, arrows, call results: signs of something else than prose.
_NOT_PROSE = re.compile(
    r">>>|^\S+ - |\.\. |:param|:return|@|---|===|->|=>|--|::|\||[{}<>\\^~#$%]|https?:|XXX|\(\)\.|\bself\b"
)


def plain(text: str) -> str:
    """Text with reStructuredText roles, literals, links and emphasis reduced to their words, on one line."""
    text = _ROLE.sub(lambda match: match[1].lstrip("~!"), text)
    text = _LITERAL.sub(r"\1", text)
    text = _LINK.sub(r"\1", text)
    text = _QUOTED.sub(r"'\1'", text)
    text = text.replace("`", "")
    text = _EMPHASIS.sub(r"\1", text)
    return " ".join(text.split())


def first_paragraph(docstring: str) -> str:
    """Lines up to the first blank line or list."""
    lines: list[str] = []
    for line in docstring.strip().splitlines():
        if not line.strip() or (lines and _LIST_ITEM.match(line)):
            break
        lines.append(line)
    return "\n".join(lines)


def first_sentence(docstring: str, *, max_words: int = 16, min_words: int = 3) -> str | None:
    """The first sentence of a docstring as plain text, with a capital at its start and a full stop at its end.

    Args:
        docstring: the docstring.
        max_words: words, divided by spaces, that it may have.
        min_words: words that it must have.

    Returns:
        the sentence, or None where the docstring does not begin with one of this length, or begins with a list, code,
        a heading, or markup that cannot be taken away.
    """
    paragraph = first_paragraph(docstring)
    text = plain(paragraph)
    if not text or _LIST_ITEM.match(paragraph) or _NOT_PROSE.search(text[:400]):
        return None
    sentence = _SENTENCE_END.split(text, maxsplit=1)[0].rstrip(" ;,")
    words = sentence.split()
    if not min_words <= len(words) <= max_words or not sentence.isascii():
        return None
    if sentence.endswith((":", "=", "-", "(")) or sentence.count("(") != sentence.count(")"):
        return None
    if sentence.count('"') % 2 or not sentence[0].isalpha() or sentence.isupper() or "_(" in sentence:
        return None
    if len([word for word in words if word.strip(".,;'\"()").isalpha()]) < 0.6 * len(words):
        return None
    sentence = sentence[0].upper() + sentence[1:] if words[0].islower() else sentence
    return sentence if sentence.endswith((".", "!", "?")) else sentence + "."
