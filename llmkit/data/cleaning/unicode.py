"""Unicode clean-up: one form for each text that looks the same, and nothing in it that cannot be seen."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from llmkit.data.cleaning.base import Verdict
from llmkit.data.cleaning.config import UnicodeConfig
from llmkit.store.documents import Document

# CR LF, CR, next line, line separator, paragraph separator; vertical tab and form feed break lines and pages.
_LINE_BREAK = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufdd0-\ufdef\ufffe\uffff]")
_ZERO_WIDTH = re.compile("[\u00ad\u180e\u200b\u2060\ufeff]")


def clean_unicode(text: str, config: UnicodeConfig) -> str:
    """The text after the clean-up that the settings ask for; doing it twice changes nothing more.

    Normalization comes last, since taking away a character can bring a letter and its accent together.
    """
    if config.line_endings:
        text = _LINE_BREAK.sub("\n", text)
    if config.control_characters:
        text = _CONTROL.sub("", text)
    if config.zero_width and not text.isascii():
        text = _ZERO_WIDTH.sub("", text)
    if config.normalization != "none" and not text.isascii():
        text = unicodedata.normalize(config.normalization, text)
    return text


class Unicode:
    """Applies `clean_unicode`; drops nothing."""

    name = "unicode"

    def __init__(self, config: UnicodeConfig) -> None:
        self._config = config

    def apply(self, batch: Sequence[Document]) -> list[Verdict]:
        """The documents, those whose text changes with the new text."""
        return [self._verdict(document) for document in batch]

    def _verdict(self, document: Document) -> Verdict:
        text = clean_unicode(document.text, self._config)
        return document if text == document.text else replace(document, text=text)
