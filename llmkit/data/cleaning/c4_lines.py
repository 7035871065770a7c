"""Removal of lines after Raffel et al. 2020 (C4, arXiv:1910.10683, 2.2), in the order of the authors' program."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from llmkit.data.cleaning.base import Dropped, Verdict
from llmkit.data.cleaning.config import C4LinesConfig
from llmkit.store.documents import Document

PLACEHOLDER = "lorem ipsum"
CURLY_BRACKET = "{"
_ELLIPSIS = "..."
_JAVASCRIPT = "javascript"
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")


class C4Lines:
    """Removes lines that are no sentences, and drops documents of which none is left (`no_lines`).

    A line for which the filter `c4` drops the document ("lorem ipsum", curly bracket) stays where C4 would have dropped
    the document before it came to remove the line, so that both together decide as C4 does.
    """

    name = "c4_lines"

    def __init__(self, config: C4LinesConfig) -> None:
        self._config = config
        self._ends = tuple(config.end_marks)
        self._phrases = tuple(phrase.lower() for phrase in config.phrases)

    def apply(self, batch: Sequence[Document]) -> list[Verdict]:
        """The documents with the lines that stay, the white space around each removed."""
        return [self._verdict(document) for document in batch]

    def _verdict(self, document: Document) -> Verdict:
        lines = document.text.splitlines()
        # Without brackets nothing is taken out of lines, so that what is nowhere in the text is in none of them.
        lower = document.text.lower()
        look = "[" in lower or any(part in lower for part in (PLACEHOLDER, _JAVASCRIPT, *self._phrases))
        kept = [found for line in lines if (found := self._line(line, look)) is not None]
        text = "\n".join(kept).strip()
        if not text:
            return Dropped("no_lines", f"none of {len(lines)} lines is left")
        return document if text == document.text else replace(document, text=text)

    def _line(self, line: str, look: bool) -> str | None:
        """What stays of a line; `look` says whether there may be phrases in it."""
        config = self._config
        line = line.strip()
        words = line.split()
        if len(line) > config.max_word_characters and any(len(word) > config.max_word_characters for word in words):
            return None
        if config.citations and "[" in line:
            line = _CITATION.sub("", line)
        if self._ends and (not line.endswith(self._ends) or line.endswith(_ELLIPSIS)):
            return None
        if len(words) < config.min_words:
            return None
        return None if look and self._has_phrase(line) else line

    def _has_phrase(self, line: str) -> bool:
        lower = line.lower()
        if PLACEHOLDER in lower:
            return False
        if self._config.javascript and _JAVASCRIPT in lower:
            return True
        return CURLY_BRACKET not in line and any(phrase in lower for phrase in self._phrases)
