"""What a metric is, and the seeded bootstrap that gives every metric its interval.

A metric turns each example into a row of sufficient statistics and the sum of those rows into a figure. So the figure
of a corpus, of a part of it, or of a resample of it is computed the same way, and a thousand resamples cost one matrix
product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Example = TypeVar("Example")
Better = Literal["lower", "higher"]

# Resamples are drawn in blocks of this many counts, to bound memory.
_BLOCK = 1 << 23


@dataclass(frozen=True)
class Metric(Generic[Example]):
    """A figure computed from examples.

    Args:
        name: as in tables ("bits_per_byte").
        signature: says exactly how it is computed, package versions included.
        better: which direction is better; None where neither is.
        statistics: N examples to their sufficient statistics [N, S].
        combine: sums of statistics [R, S] to the figures [R].
    """

    name: str
    signature: str
    better: Better | None
    statistics: Callable[[Sequence[Example]], Floats]
    combine: Callable[[Floats], Floats]

    def value(self, examples: Sequence[Example]) -> float:
        """The figure of all examples together."""
        return float(self.combine(self.statistics(examples).sum(axis=0, keepdims=True))[0])


@dataclass(frozen=True)
class Estimate:
    """A figure, the bounds of its interval (None where one example leaves nothing to resample) and the examples."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Bootstrap:
    """Percentile bootstrap over examples (Efron and Tibshirani 1993, section 13.3).

    Args:
        resamples: how many resamples are drawn.
        confidence: probability mass between the bounds.
        seed: of the resampling. Equal seeds draw equal examples, so that the intervals of several models measured on
            the same examples come from the same resamples.
    """

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def counts(self, n: int, start: int, stop: int, generator: np.random.Generator) -> Floats:
        """How often each of `n` examples is in resamples `start` to `stop`, [stop - start, n]."""
        rows = stop - start
        drawn = generator.integers(0, n, size=(rows, n)) + np.arange(rows)[:, None] * n
        return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)

    def distribution(self, statistics: Floats, combine: Callable[[Floats], Floats]) -> Floats:
        """The figure of each resample, [resamples], from statistics [N, S]."""
        n = len(statistics)
        generator = np.random.default_rng(self.seed)
        step = max(1, _BLOCK // n)
        parts = []
        for start in range(0, self.resamples, step):
            counts = self.counts(n, start, min(start + step, self.resamples), generator)
            # einsum adds in a fixed order; a BLAS product would depend on its number of threads.
            parts.append(combine(np.einsum("rn,ns->rs", counts, statistics)))
        return np.concatenate(parts)

    def estimate(self, metric: Metric[Example], examples: Sequence[Example]) -> Estimate:
        """The figure of `examples` with its interval.

        Raises:
            ValueError: there are no examples, or the figure is not a finite number.
        """
        if not examples:
            raise ValueError(f"{metric.name} of no examples")
        statistics = metric.statistics(examples)
        value = float(metric.combine(statistics.sum(axis=0, keepdims=True))[0])
        if not math.isfinite(value):
            raise ValueError(f"{metric.name} is {value}")
        if len(examples) == 1:
            return Estimate(value, None, None, 1)
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(self.distribution(statistics, metric.combine), [tail, 1 - tail])
        return Estimate(value, float(low), float(high), len(examples))


def column(values: Sequence[float]) -> Floats:
    """One number for each example as statistics [N, 1]."""
    return np.asarray(values, dtype=np.float64)[:, None]


def with_count(values: Sequence[float]) -> Floats:
    """One number for each example, and a one to count it: statistics [N, 2] of a mean."""
    numbers = column(values)
    return np.concatenate([numbers, np.ones_like(numbers)], axis=1)


def ratio(totals: Floats) -> Floats:
    """Sums [R, 2] to the first over the second."""
    quotient: Floats = totals[:, 0] / totals[:, 1]
    return quotient
