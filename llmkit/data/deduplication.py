"""Finding documents that are there already."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from llmkit.data.cleaning.base import Dropped, Verdict
from llmkit.store.documents import Document


def content_key(text: str) -> bytes:
    """16 bytes that are equal for texts which differ in white space only (128-bit BLAKE2b; chance collisions are
    expected after some 10^19 documents)."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


class ExactDuplicates:
    """Drops a document whose text has come before, as a `duplicate`. Remembers about 100 bytes for each one kept."""

    name = "exact_duplicates"

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def apply(self, batch: Sequence[Document]) -> list[Verdict]:
        """Keep the first document of each text."""
        verdicts: list[Verdict] = []
        for document in batch:
            key = content_key(document.text)
            verdicts.append(Dropped("duplicate", f"content {key.hex()}") if key in self._seen else document)
            self._seen.add(key)
        return verdicts
