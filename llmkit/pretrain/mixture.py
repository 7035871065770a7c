"""Which source each sequence of a training comes from, in shares that may change on the way.

A source's k-th sequence falls due where its share, added up from the first sequence on, reaches k + 1 less
its offset; the training reads sequences in the order in which they fall due. For shares that do not change that is
apportionment by Webster and Sainte-Lague. How many sequences of each source come before any one is found without going
through those before it, and never differs from the shares added up by more than a sequence or so: `counts` says.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llmkit.pretrain.course import Course
from llmkit.train.ramp import value_at

Weights = Sequence[float | list[list[float]]]
_PARTS = 2**20
"""Places are told apart down to this part of a sequence; what falls due within one goes by the sources' order."""


class Mixture:
    """The shares of S sources over the sequences of a training.

    Weights are made shares of their sum wherever one of them has a point, and where phases meet; between these places
    shares go on a line. A phase may have weights of its own, which hold all through it.

    Args:
        weights: of each source, as `value_at` takes them, over the tokens of the training.
        course: of the training.
        by_phase: weights of each phase that has its own, [S]; None, or nothing at the end, for those that have not.
        scales: what all weights of a source are multiplied by, [S].

    Raises:
        ValueError: all weights are zero at some place.
    """

    def __init__(
        self,
        weights: Weights,
        course: Course,
        by_phase: Sequence[Sequence[float] | None] = (),
        scales: Sequence[float] | None = None,
    ) -> None:
        self.sources = len(weights)
        self._rows = course.rows
        ordered, values = _knots(weights, course, by_phase)
        if scales is not None:
            values = values * np.array(scales)
        totals = values.sum(1, keepdims=True)
        if not (totals > 0).all():
            raise ValueError("all weights are zero at some place of the training")
        self._knots = np.array([_row_at(course, place) for place in ordered])
        self._shares = values / totals
        widths = np.diff(self._knots)[:, None]
        areas = (self._shares[1:] + self._shares[:-1]) / 2 * widths
        self._sums = np.concatenate([np.zeros((1, self.sources)), np.cumsum(areas, axis=0)])
        # Spread over the unit, so that sources of equal shares take turns.
        self._offsets = (np.arange(self.sources) + 0.5) / self.sources

    def expected(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """The shares added up over the first `rows` sequences, [n] to [n, S]; beyond the end the last ones go on."""
        segment = np.clip(np.searchsorted(self._knots, rows, side="right") - 1, 0, len(self._knots) - 2)
        width = self._knots[segment + 1] - self._knots[segment]
        inside = np.clip(rows - self._knots[segment], 0.0, width)[:, None]
        slope = (self._shares[segment + 1] - self._shares[segment]) / np.maximum(width, 1e-9)[:, None]
        found = self._sums[segment] + inside * (self._shares[segment] + slope * inside / 2)
        # However it is rounded, it never passes the next knot.
        found = np.clip(found, self._sums[segment], self._sums[segment + 1])
        return np.asarray(found + np.maximum(rows - self._rows, 0.0)[:, None] * self._shares[-1])

    def counts(self, rows: int) -> NDArray[np.int64]:
        """How many of the first `rows` sequences come from each source, [S].

        With s the source's share, they differ from `expected` by at most 1 + s x S / 2.
        """
        return np.array(self._counts(rows) if self.sources > 1 else [rows], dtype=np.int64)

    @lru_cache(maxsize=4)  # noqa: B019 - a step begins where the one before it ended, and there is one mixture.
    def _counts(self, rows: int) -> tuple[int, ...]:
        # The place, in parts of a sequence, after which so many have fallen due.
        low, width = (rows - self.sources - 2) * _PARTS, (2 * self.sources + 4) * _PARTS
        while width > 1:
            stride = -(-width // 256)
            reached = self._due(low + stride * np.arange(1, 257)).sum(1) >= rows
            low, width = low + stride * int(np.argmax(reached)), stride
        before, after = self._due(np.array([low, low + 1]))
        missing = rows - int(before.sum())
        for source in range(self.sources):
            taken = min(missing, int(after[source] - before[source]))
            before[source] += taken
            missing -= taken
        assert missing == 0
        return tuple(before.tolist())

    def _due(self, parts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sequences of each source that fall due up to some places, [n] to [n, S]."""
        # What falls due at the same place is to do so whatever the rounding.
        due = self.expected(np.maximum(parts, 0) / _PARTS) + self._offsets + 1e-9
        return np.where(parts[:, None] < 0, 0, np.floor(due)).astype(np.int64)

    def mean_shares(self) -> NDArray[np.float64]:
        """Each source's part of all sequences, [S]."""
        return np.asarray(self._sums[-1] / self._rows)


def _knots(
    weights: Weights, course: Course, by_phase: Sequence[Sequence[float] | None]
) -> tuple[list[float], NDArray[np.float64]]:
    """Places where weights turn, in order, and the weights there, [n, S]; where they jump, the place comes twice."""
    points = {place for weight in weights if not isinstance(weight, int | float) for place, _ in weight}
    begins = [stretch.tokens_before / course.tokens for stretch in course.stretches]
    places: list[float] = []
    values: list[list[float]] = []
    for number, (begin, end) in enumerate(itertools.pairwise([*begins, 1.0])):
        own = by_phase[number] if number < len(by_phase) else None
        inside = sorted({begin, end, *(place for place in points if begin < place < end)})
        for place in inside:
            here = [float(weight) for weight in own] if own else [value_at(weight, place) for weight in weights]
            if not places or (place, here) != (places[-1], values[-1]):
                places.append(place)
                values.append(here)
    return places, np.array(values)


def _row_at(course: Course, place: float) -> float:
    """How many sequences lie before a place of the training that is given as a part of its tokens."""
    tokens = place * course.tokens
    stretch = [found for found in course.stretches if found.tokens_before <= tokens][-1]
    return stretch.rows_before + (tokens - stretch.tokens_before) / stretch.length
