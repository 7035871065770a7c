"""What training wrote down: `metrics.jsonl` as series of points, smoothed and thinned for drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.report.files import Unreadable, as_finite, as_number, read_lines

METRICS = "metrics.jsonl"
DRAWN_POINTS = 400
SMOOTHING = 0.02
_SETBACKS = ("skipped_steps", "rewinds", "passed_over_steps")
_NOT_CURVES = {"step", "split", "tokens", "seconds", "seconds_left", "memory_bytes", "epoch", "time", *_SETBACKS}
# What a reader looks at first and last; the rest stands between by name.
_FIRST = ("loss", "reward", "kl", "accuracy")
_LAST = ("lr", "grad_norm")
MACHINE = ("tokens_per_second", "utilization", "data_seconds")
"""Metrics of the machine and not of the model; they come after all others."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One metric on one split of the data.

    Args:
        metric: its name ("loss").
        split: "train" or "validation".
        points: step and value, by step; finite values only.
        lost: how many values were NaN or infinite.
        gaps: steps of those values, where the line is broken.
    """

    metric: str
    split: str
    points: tuple[Point, ...]
    lost: int = 0
    gaps: tuple[float, ...] = ()

    @property
    def last(self) -> Point | None:
        """The last point."""
        return self.points[-1] if self.points else None

    @property
    def lowest(self) -> Point | None:
        """The first of the points with the lowest value."""
        return min(self.points, key=lambda point: (point[1], point[0])) if self.points else None

    @property
    def highest(self) -> Point | None:
        """The first of the points with the highest value."""
        return min(self.points, key=lambda point: (-point[1], point[0])) if self.points else None


@dataclass(frozen=True)
class Curves:
    """All series of a stage, by metric in the order in which they are shown.

    Args:
        metrics: for each metric its series, training first.
        unreadable: lines of the file that could not be read.
        last_step: the last step logged.
        setbacks: what was left out of the training because it was bad, as a sentence; None where all went well.
    """

    metrics: dict[str, tuple[Series, ...]]
    unreadable: int = 0
    last_step: int | None = None
    setbacks: str | None = None


def read_curves(directory: Path) -> Curves:
    """The curves in a stage's folder. Of several rows for one step and split (after a resume) the last one counts."""
    unreadable = Unreadable()
    rows: dict[tuple[str, float], dict[str, float]] = {}
    counts: dict[str, int] = dict.fromkeys(_SETBACKS, 0)
    for row in read_lines(directory / METRICS, unreadable):
        step = as_number(row.get("step"))
        if step is None or not math.isfinite(step):
            continue
        counts |= {name: int(number) for name in _SETBACKS if (number := as_finite(row.get(name))) is not None}
        split = str(row.get("split", "train"))
        read = ((str(key), as_number(value)) for key, value in row.items() if key not in _NOT_CURVES)
        rows[split, step] = {key: number for key, number in read if number is not None}
    found: dict[tuple[str, str], list[Point]] = {}
    for (split, step), values in sorted(rows.items(), key=lambda item: item[0][1]):
        for metric, value in values.items():
            found.setdefault((metric, split), []).append((step, value))
    by_metric: dict[str, list[Series]] = {}
    for metric, split in sorted(found, key=lambda key: (_rank(key[0]), key[1] != "train", key[1])):
        by_metric.setdefault(metric, []).append(_series(metric, split, found[metric, split]))
    last = max((step for _, step in rows), default=None)
    return Curves(
        {metric: tuple(series) for metric, series in by_metric.items()},
        unreadable.lines,
        int(last) if last is not None else None,
        _sentence(*(counts[name] for name in _SETBACKS)),
    )


def _sentence(skipped: int, rewinds: int, passed_over: int) -> str | None:
    parts = []
    if skipped:
        parts.append(f"{skipped:,} bad step{'s' * (skipped > 1)} left out (loss or gradient not finite, or a spike)")
    if rewinds:
        times = "once" if rewinds == 1 else f"{rewinds:,} times"
        parts.append(f"went back {times} to pass over the data of {passed_over:,} step{'s' * (passed_over > 1)}")
    return f"Training: {'; '.join(parts)}." if parts else None


def _rank(metric: str) -> tuple[int, str]:
    for group, names in ((0, _FIRST), (2, _LAST), (3, MACHINE)):
        if metric in names:
            return group, f"{names.index(metric)}"
    return 1, metric


def _series(metric: str, split: str, points: Sequence[Point]) -> Series:
    finite = tuple(point for point in points if math.isfinite(point[1]))
    gaps = tuple(step for step, value in points if not math.isfinite(value))
    return Series(metric, split, finite, len(gaps), gaps)


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Centred moving mean over 4% of the points, narrower near the ends so that it stays centred there."""
    half = round(len(points) * SMOOTHING)
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    result = []
    for index, (step, _) in enumerate(points):
        reach = min(half, index, len(points) - 1 - index)
        first, last = index - reach, index + reach + 1
        result.append((step, (sums[last] - sums[first]) / (last - first)))
    return result


def thinned(points: Sequence[Point], limit: int = DRAWN_POINTS) -> list[Point]:
    """At most `limit` points: the first, the last, and of every stretch between them its lowest and highest.

    Spikes, which matter most in a curve of a training run, are all kept.
    """
    if len(points) <= limit:
        return list(points)
    inner = points[1:-1]
    stretches = (limit - 2) // 2
    kept = [points[0]]
    for number in range(stretches):
        stretch = inner[number * len(inner) // stretches : (number + 1) * len(inner) // stretches]
        lowest, highest = min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])
        kept += sorted({lowest, highest})
    kept.append(points[-1])
    return kept
