"""Line charts as geometry: scales, ticks and paths, for the template to draw as SVG.

A chart has no size in pixels. Its plot is a square of `EXTENT` units that the page stretches to the room there is,
while ticks are placed in per cent, so that text keeps its size on a phone as on a wide screen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmkit.report import format as text
from llmkit.report.curves import Point, Series, smoothed, thinned

EXTENT = 1000
_SMOOTH_FROM = 40
_MARKS_UP_TO = 40
_TITLES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "kl": "KL to the starting model",
    "reward": "Reward",
    "accuracy": "Accuracy",
    "tokens_per_second": "Tokens per second",
    "utilization": "Share of the matrix rate",
    "data_seconds": "Seconds waiting for data",
}


@dataclass(frozen=True)
class Scale:
    """Maps values of [low, high] linearly to [0, 1]."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        """Where a value lies between the ends."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in per cent from the left or from the top, and its label."""

    place: float
    label: str


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Args:
        name: what it shows ("training").
        style: "train", "validation" or "other", with "raw" beside a smoothed line; names of CSS classes.
        path: the path's data in units of the plot.
        marks: path data of a dot at each point, where there are few.
    """

    name: str
    style: str
    path: str
    marks: str


@dataclass(frozen=True)
class Chart:
    """A chart of one metric of one stage.

    Args:
        id: unique in the page.
        metric: name of the metric in the log.
        title: name of the metric.
        facts: last and best values as short sentences.
        x_ticks: ticks below, places from the left.
        y_ticks: ticks at the left, places from the top.
        lines: from back to front.
        data: JSON of what the readout shows: ends of both axes, and the points of each line.
        description: the chart in a sentence, for those who do not see it.
    """

    id: str
    metric: str
    title: str
    facts: tuple[str, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    data: str
    description: str


def nice_step(span: float, intervals: int) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that divides `span` into at most `intervals` parts."""
    rough = span / intervals
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1.0, 2.0, 2.5, 5.0):
        if factor * power >= rough * (1 - 1e-9):
            return factor * power
    return 10.0 * power


def ticks(low: float, high: float, step: float) -> list[float]:
    """Multiples of the step within [low, high]."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def value_scale(values: Iterable[float], intervals: int = 4) -> tuple[Scale, float]:
    """A scale whose ends are ticks around the values, and the step between ticks; equal values get room around them."""
    found = list(values)
    low, high = min(found), max(found)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    step = nice_step(high - low, intervals)
    return Scale(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step), step


def tick_label(value: float, step: float) -> str:
    """A tick's label, with as many decimals as the step needs."""
    if value == 0 or abs(value) < step * 1e-6:
        return "0"
    largest = abs(value)
    if largest >= 1e4:
        return text.short_count(value).replace(" ", "")
    if step < 1e-3:
        power = math.floor(math.log10(largest))
        return text.minus(f"{value / 10.0**power:.3g}e{power}")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, decimals) != round(step, decimals + 1):
        decimals += 1
    return text.minus(f"{value:.{decimals}f}")


def path(points: Sequence[Point], x: Scale, y: Scale, gaps: Sequence[float] = ()) -> str:
    """Path data of a line through points, broken where a gap lies between two of them."""
    parts: list[str] = []
    breaks = sorted(gaps)
    position = 0
    previous = -math.inf
    for step, value in points:
        while position < len(breaks) and breaks[position] <= previous:
            position += 1
        broken = position < len(breaks) and breaks[position] < step
        command = "M" if not parts or broken else "L"
        parts.append(f"{command}{_place(x(step))} {_place(1 - y(value))}")
        previous = step
    return "".join(parts)


def marks(points: Sequence[Point], x: Scale, y: Scale) -> str:
    """Path data of a dot at each point: a line of no length, which round caps turn into a dot."""
    return "".join(f"M{_place(x(step))} {_place(1 - y(value))}h0" for step, value in points)


def _place(fraction: float) -> str:
    return f"{fraction * EXTENT:.1f}".removesuffix(".0")


def metric_chart(stage: str, metric: str, series: Sequence[Series]) -> Chart | None:
    """The chart of one metric: each split a line, a long one smoothed with its raw points faint behind it.

    Returns:
        the chart, or None where no value is finite.
    """
    drawn = [found for found in series if found.points]
    if not drawn:
        return None
    steps = [step for found in drawn for step, _ in found.points]
    x = Scale(min(steps), max(steps)) if max(steps) > min(steps) else Scale(min(steps) - 1, max(steps) + 1)
    y, y_step = value_scale(value for found in drawn for _, value in found.points)
    lines: list[Line] = []
    readout = []
    for found in drawn:
        name = _name(found)
        style = found.split if found.split in ("train", "validation") else "other"
        points = thinned(found.points)
        if _is_noisy(found):
            lines.append(Line(name, f"{style} raw", path(points, x, y, found.gaps), ""))
            smooth = thinned(smoothed(found.points))
            lines.append(Line(f"{name}, smoothed", style, path(smooth, x, y, found.gaps), ""))
        else:
            dots = marks(points, x, y) if len(points) <= _MARKS_UP_TO else ""
            lines.append(Line(name, style, path(points, x, y, found.gaps), dots))
        readout.append({"name": name, "points": [[_short(step), _short(value)] for step, value in points]})
    words = text.title(metric)
    title = _TITLES.get(metric, words[:1].upper() + words[1:])
    facts = tuple(_facts(found) for found in drawn)
    return Chart(
        id=f"chart-{text.slug(stage)}-{text.slug(metric)}",
        metric=metric,
        title=title,
        facts=facts,
        x_ticks=_ticks(x, nice_step(x.high - x.low, 5), from_top=False),
        y_ticks=_ticks(y, y_step, from_top=True),
        lines=tuple(lines),
        data=json.dumps({"x": [x.low, x.high], "y": [y.low, y.high], "lines": readout}, separators=(",", ":")),
        description=f"{title} of {stage} by step, {_short(min(steps)):,} to {_short(max(steps)):,}. {' '.join(facts)}",
    )


def _name(series: Series) -> str:
    return {"train": "training"}.get(series.split, series.split)


def _is_noisy(series: Series) -> bool:
    """Whether a line needs smoothing: it has many points and turns at more than a fifth of them."""
    values = [value for _, value in series.points]
    if len(values) < _SMOOTH_FROM:
        return False
    turns = sum(
        (after - here) * (here - before) < 0
        for before, here, after in zip(values, values[1:], values[2:], strict=False)
    )
    return turns > len(values) / 5


def _ticks(scale: Scale, step: float, *, from_top: bool) -> tuple[Tick, ...]:
    places = [(value, scale(value)) for value in ticks(scale.low, scale.high, step)]
    return tuple(
        Tick(round(100 * (1 - place if from_top else place), 2), tick_label(value, step)) for value, place in places
    )


def _facts(series: Series) -> str:
    name = _name(series)
    last, lowest, highest = series.last, series.lowest, series.highest
    assert last is not None and lowest is not None and highest is not None
    sentence = f"{name[:1].upper()}{name[1:]}: last {text.significant(last[1], 4)}"
    if len(series.points) > 1:
        sentence += f", lowest {text.significant(lowest[1], 4)}, highest {text.significant(highest[1], 4)}"
    lost = f"; {series.lost} not finite" if series.lost else ""
    return f"{sentence}{lost}."


def _short(value: float) -> float | int:
    rounded = float(f"{value:.5g}") if abs(value) < 1e5 else round(value)
    return int(rounded) if float(rounded).is_integer() else rounded
