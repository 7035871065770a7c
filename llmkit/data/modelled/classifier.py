"""What a classifier says of a document, as a filter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import ColumnType, Dropped, Values
from llmkit.data.cleaning.limits import Limit, as_it_is, judge_by
from llmkit.data.modelled.config import ClassifierConfig
from llmkit.data.modelled.opened import FilterModel, how_it_computes
from llmkit.errors import ModelError
from llmkit.store.documents import Document


class Classifier:
    """Drops documents of a class that is not wanted (`wrong_class`), or whose probability or score is outside of the
    limits (`low_probability`, `high_probability`, `low_score`, `high_score`)."""

    name = "classifier"
    columns: Mapping[str, ColumnType] = {"label": "string", "probability": "float64", "score": "float64"}

    def __init__(self, config: ClassifierConfig) -> None:
        self._config = config
        self.measuring: Mapping[str, Any] = {
            "label": config.label,
            "max_length": config.max_length,
            "windows": config.windows,
            **how_it_computes(config),
        }
        probability = "probability {:.3f}" + ("" if config.label is None else f" of {as_it_is(config.label)}")
        self._limits = (
            Limit("probability", "low_probability", probability, least=config.min_probability),
            Limit("probability", "high_probability", probability, most=config.max_probability),
            Limit("score", "low_score", "score {:.3f}", least=config.min_score),
            Limit("score", "high_score", "score {:.3f}", most=config.max_score),
        )
        self._model = FilterModel(config.model, config, ("classification", "reward"))

    def measure(self, batch: Sequence[Document]) -> dict[str, Values]:
        """The likeliest class and the probability of the one asked for; or the score of a head with one output. What
        the model does not give is missing, or not a number."""
        from llmkit.data.modelled.windows import window_outputs

        with self._model.at_work() as opened:
            outputs, owners = window_outputs(
                opened,
                [document.text for document in batch],
                self._config.max_length,
                every=self._config.windows == "all",
                batch_size=self._config.batch_size,
            )
            names = opened.model.config.labels if opened.model.config.head == "classification" else ()
        # Documents without a window divide nothing by nothing.
        mean = np.zeros((len(batch), outputs.shape[1]))
        np.add.at(mean, owners, outputs)
        windows = np.bincount(owners, minlength=len(batch))
        mean = np.divide(mean, windows[:, None], out=np.full_like(mean, np.nan), where=windows[:, None] > 0)
        missing = np.full(len(batch), np.nan)
        if not names:
            return {"label": [None] * len(batch), "probability": missing, "score": mean[:, 0]}
        top = [int(row.argmax()) if count else None for row, count in zip(mean, windows.tolist(), strict=True)]
        probability = mean.max(axis=1) if self._config.label is None else mean[:, self._column(names)]
        labels = [None if place is None else names[place] for place in top]
        return {"label": labels, "probability": probability, "score": missing}

    def judge(self, measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
        """Keep what has a class that is wanted and is inside of the limits."""
        verdicts = judge_by(self._limits, measured)
        if self._config.keep is None:
            return verdicts
        wanted = set(self._config.keep)
        return [
            verdict if label in wanted else Dropped("wrong_class", label or "none")
            for label, verdict in zip(measured["label"].tolist(), verdicts, strict=True)
        ]

    def _column(self, names: Sequence[str]) -> int:
        if self._config.label not in names:
            raise ModelError(
                f"the model has no class `{self._config.label}`.",
                where=self._config.model,
                hint=f"Its classes: {', '.join(names)}.",
            )
        return names.index(self._config.label)
