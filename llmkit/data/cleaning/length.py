"""Limits of a document's length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import ColumnType, Dropped, Values
from llmkit.data.cleaning.config import LengthConfig
from llmkit.store.documents import Document


class Length:
    """Drops documents that are `too_short` or `too_long`, in characters without the white space around them."""

    name = "length"
    columns: Mapping[str, ColumnType] = {"characters": "int64"}
    measuring: Mapping[str, Any] = {}

    def __init__(self, config: LengthConfig) -> None:
        self._config = config

    def measure(self, batch: Sequence[Document]) -> dict[str, Values]:
        """Characters of each document."""
        return {"characters": np.array([len(document.text.strip()) for document in batch], np.int64)}

    def judge(self, measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
        """Keep what is inside the limits, both included."""
        return [self._verdict(characters) for characters in measured["characters"].tolist()]

    def _verdict(self, characters: int) -> Dropped | None:
        if characters < self._config.min_characters:
            return Dropped("too_short", f"{characters} characters")
        if characters > self._config.max_characters:
            return Dropped("too_long", f"{characters} characters")
        return None
