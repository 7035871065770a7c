"""Decontamination as a filter: n-grams in common are measured, thresholds judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import ColumnType, Dropped, Values
from llmkit.data.decontamination.config import DecontaminationConfig
from llmkit.store.documents import Document


class Decontamination:
    """Drops documents that hold evaluation data, as `contaminated`.

    Args:
        config: its settings.
        index: folder that `index.write_index` wrote. What is measured depends on its content beside `measuring`.
    """

    name = "decontamination"
    columns: Mapping[str, ColumnType] = {"matches": "int32", "share": "float32", "found": "string"}

    def __init__(self, config: DecontaminationConfig, index: Path) -> None:
        self._config = config
        self._index = index
        self.measuring: Mapping[str, Any] = {"ngram": config.ngram, "min_words": config.min_words}

    def measure(self, batch: Sequence[Document]) -> dict[str, Values]:
        """How many n-grams of each document are evaluation data, which share of all its own, and where the first is."""
        raise NotImplementedError

    def judge(self, measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
        """Drop what has enough matches that are a large enough share."""
        raise NotImplementedError
