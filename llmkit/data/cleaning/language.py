"""Which language a text is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import ColumnType, Dropped, Values
from llmkit.data.cleaning.config import LanguageConfig
from llmkit.data.cleaning.identification import identifier, model_version, sample
from llmkit.store.documents import Document


class Language:
    """Drops documents that are in an `other_language`, or of which it is not certain enough in which they are
    (`uncertain_language`), in this order.

    Documents whose source states no language get the one that is identified as theirs when they are written
    (`pipeline.FILLED`). What a source states is kept, and is not what is judged.

    Raises:
        MissingDependencyError: py3langid is not installed.
    """

    name = "language"
    columns: Mapping[str, ColumnType] = {"language": "string", "probability": "float32"}

    def __init__(self, config: LanguageConfig) -> None:
        self.measuring: Mapping[str, Any] = {"model": model_version(), "sample_characters": config.sample_characters}
        self._characters = config.sample_characters
        self._languages = None if config.languages is None else frozenset(config.languages)
        self._least = float(np.float32(config.min_probability))

    def measure(self, batch: Sequence[Document]) -> dict[str, Values]:
        """The most probable language and its probability; none and 0 where nothing tells languages apart."""
        model = identifier()
        found = model.probabilities([sample(document.text, self._characters) for document in batch])
        probable = found.max(1, initial=0)
        languages = [
            model.languages[index] if probability > 0 else None
            for index, probability in zip(found.argmax(1).tolist(), probable.tolist(), strict=True)
        ]
        return {"language": languages, "probability": probable}

    def judge(self, measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
        """Keep what is in one of the languages, with the least probability or a higher one."""
        rows = zip(measured["language"].tolist(), measured["probability"].tolist(), strict=True)
        return [self._verdict(language, probability) for language, probability in rows]

    def _verdict(self, language: str | None, probability: float) -> Dropped | None:
        detail = f"{language}, probability {probability:.2f}" if language else "nothing tells"
        if language and self._languages is not None and language not in self._languages:
            return Dropped("other_language", detail)
        if probability < self._least:
            return Dropped("uncertain_language", detail)
        return None
