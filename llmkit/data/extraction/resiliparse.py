"""Extraction by resiliparse; runs in a guarded worker."""

from __future__ import annotations

from typing import Any

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from llmkit.data.extraction.encoding import decode_page

Found = tuple[str, str | None, str | None] | str
"""Text, title and language; or what is wrong with the page's encoding."""


def main_text(page: tuple[bytes, str | None]) -> Found:
    """The main text of a page, its title and its language."""
    return _text(page, main_content=True)


def all_text(page: tuple[bytes, str | None]) -> Found:
    """All visible text of a page, its title and its language."""
    return _text(page, main_content=False)


def _text(page: tuple[bytes, str | None], *, main_content: bool) -> Found:
    markup = decoded(page)
    if isinstance(markup, UnicodeDecodeError):
        return encoding_problem(markup)
    tree = HTMLTree.parse(markup)
    return extract_plain_text(tree, main_content=main_content), *title_and_language(tree)


def decoded(page: tuple[bytes, str | None]) -> str | UnicodeDecodeError:
    """The markup of a page, or what is wrong with its bytes."""
    try:
        return decode_page(*page)
    except UnicodeDecodeError as error:
        return error


def encoding_problem(error: UnicodeDecodeError) -> str:
    """What is wrong with a page's bytes, in words."""
    return f"byte {error.start:,}: not valid {error.encoding} ({error.reason})"


def title_and_language(tree: Any) -> tuple[str | None, str | None]:
    """The title of a page with its white space evened out, and the language it declares."""
    root = tree.document and tree.document.query_selector("html")
    title = " ".join((tree.title or "").split())
    language = (root.getattr("lang") or "").strip() if root else ""
    return title or None, language or None
