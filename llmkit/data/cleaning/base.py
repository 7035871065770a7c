"""The contract of a cleaning step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llmkit.store.documents import Document


@dataclass(frozen=True, slots=True)
class Dropped:
    """A document is not kept.

    Args:
        reason: one of the few names that the step's documentation lists; counted in reports.
        detail: what was found in this document.
    """

    reason: str
    detail: str = ""


Verdict = Document | Dropped
"""What a step says of a document: the document itself (kept), another one (kept, changed), or `Dropped`."""


class Step(Protocol):
    """A cleaning step. A step that remembers earlier batches (deduplication) gets them in the order of the sources."""

    name: str

    def apply(self, batch: Sequence[Document]) -> list[Verdict]:
        """One verdict for each document of the batch, in its order."""
        ...
