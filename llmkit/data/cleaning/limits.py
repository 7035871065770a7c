"""Judging by limits: which of a list of limits a document breaks first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import Dropped


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of one measure.

    Args:
        column: the measure.
        reason: why a document outside is dropped.
        detail: what is found there, `{}` standing for the value.
        least: smallest value that is kept.
        most: largest value that is kept.
    """

    column: str
    reason: str
    detail: str
    least: float | None = None
    most: float | None = None

    def broken(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Which values are outside."""
        outside = np.zeros(len(values), bool)
        if self.least is not None:
            outside |= values < self.least
        if self.most is not None:
            outside |= values > self.most
        return outside


def as_it_is(text: str) -> str:
    """A text as a part of `Limit.detail`, where curly brackets would mean something."""
    return text.replace("{", "{{").replace("}", "}}")


def judge_by(limits: Sequence[Limit], measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
    """For each document the first of the limits that it breaks."""
    verdicts: list[Dropped | None] = [None] * len(next(iter(measured.values())))
    for limit in limits:
        values: NDArray[Any] = measured[limit.column]
        for row in np.flatnonzero(limit.broken(values)).tolist():
            if verdicts[row] is None:
                verdicts[row] = Dropped(limit.reason, limit.detail.format(values[row].item()))
    return verdicts


def ratio(numbers: NDArray[np.generic], of: NDArray[np.generic]) -> NDArray[np.float64]:
    """Quotients, 0 where something is divided by 0."""
    out = np.zeros(len(numbers), np.float64)
    np.divide(numbers, of, out=out, where=np.asarray(of != 0))
    return out
