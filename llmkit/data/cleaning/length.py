"""Limits of a document's length."""

from __future__ import annotations

from collections.abc import Sequence

from llmkit.data.cleaning.base import Dropped, Verdict
from llmkit.data.cleaning.config import LengthConfig
from llmkit.store.documents import Document


class Length:
    """Drops documents that are `too_short` or `too_long`, in characters without the white space around them."""

    name = "length"

    def __init__(self, config: LengthConfig) -> None:
        self._config = config

    def apply(self, batch: Sequence[Document]) -> list[Verdict]:
        """Keep what is inside the limits, both included."""
        return [self._verdict(document) for document in batch]

    def _verdict(self, document: Document) -> Verdict:
        length = len(document.text.strip())
        if length < self._config.min_characters:
            return Dropped("too_short", f"{length} characters")
        if length > self._config.max_characters:
            return Dropped("too_long", f"{length} characters")
        return document
