"""Extraction by trafilatura; runs in a guarded worker."""

from __future__ import annotations

from resiliparse.parse.html import HTMLTree
from trafilatura import extract

from llmkit.data.extraction.resiliparse import Found, decoded, encoding_problem, title_and_language


def main_text(page: tuple[bytes, str | None]) -> Found:
    """The main text of a page, its title and its language."""
    markup = decoded(page)
    if isinstance(markup, UnicodeDecodeError):
        return encoding_problem(markup)
    text = extract(markup, include_comments=False, include_tables=True, deduplicate=False)
    return text or "", *title_and_language(HTMLTree.parse(markup))
