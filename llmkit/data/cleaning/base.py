"""The contracts of cleaning: steps that change documents, and filters that measure and judge them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from llmkit.store.documents import Document

ColumnType = Literal["bool", "int32", "int64", "float32", "float64", "string"]
Values = NDArray[Any] | Sequence[Any]
"""One value for each document."""


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
    """A step that may change documents. What it says of one depends on nothing but the document and the settings."""

    name: str

    def apply(self, batch: Sequence[Document]) -> list[Verdict]:
        """One verdict for each document of the batch, in its order."""
        ...


class Filter(Protocol):
    """Measures documents, and judges them by what was measured.

    Measuring is the slow half. Its results are kept as columns beside the documents, so that another threshold, which
    only judging knows, does not measure again.

    Args:
        name: name of the filter, its key in `cleaning`; the columns are stored as `<name>.<column>`.
        columns: name and type of each measure.
        measuring: the settings that `measure` depends on, JSON-like; no thresholds.
    """

    name: str
    columns: Mapping[str, ColumnType]
    measuring: Mapping[str, Any]

    def measure(self, batch: Sequence[Document]) -> dict[str, Values]:
        """A value of each column for each document of the batch, in its order; no document influences another's."""
        ...

    def judge(self, measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
        """What becomes of each document: None where it is kept.

        Args:
            measured: by column, one value a document, as they were stored; strings are an array of objects, in which
                None stands for a value that is not there.
        """
        ...
