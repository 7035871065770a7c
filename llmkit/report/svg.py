"""A chart of lines as an SVG file of its own, for documentation and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from llmkit.report.charts import Scale, nice_step, ticks
from llmkit.report.format import short_count, significant

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 46, 56
_COLORS = ("#4269d0", "#d1572c", "#3a8f5c", "#8d54c4", "#c79400", "#5f6b7a")
"""Told apart by people who see colours in another way, on white and on dark grey."""


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Args:
        label: what it shows; None for one that shares its colour with a named one.
        points: x and y, in the order of x.
        color: number of its colour.
        rings: whether its points are rings, with no line between them: measurements beside a theory.
    """

    label: str | None
    points: Sequence[tuple[float, float]]
    color: int
    rings: bool = False


def line_chart(
    curves: Sequence[Curve], *, title: str, x_title: str, y_title: str, log_x: bool = False, names_left: bool = False
) -> str:
    """An SVG document that draws the curves over common axes.

    Args:
        curves: with at least two different x and y among all their points.
        title: above the plot.
        x_title: below it.
        y_title: at its left.
        log_x: whether x is drawn on a logarithmic scale.
        names_left: whether the names of the curves stand at the left, where these begin low.
    """
    xs = [math.log10(x) if log_x else x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    step = nice_step(max(ys) - min(ys), 6)
    low, high = math.floor(min(ys) / step) * step, math.ceil(max(ys) / step) * step
    x_scale, y_scale = Scale(min(xs), max(xs)), Scale(low, high)

    def place(x: float, y: float) -> tuple[float, float]:
        across = x_scale(math.log10(x) if log_x else x)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _TOP + (1 - y_scale(y)) * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#57606a" role="img" aria-label="{escape(title, quote=True)}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="20" font-size="15" fill="#1f2328">{escape(title)}</text>',
    ]
    for value in ticks(low, high, step):
        _, y = place(curves[0].points[0][0], value)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#d8dee4" stroke-width="1"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_label(value)}</text>')
    for value in _x_ticks(x_scale, curves, log_x):
        x, _ = place(value, low)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{_label(value)}</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">{x_title}</text>')
    parts.append(f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>')
    for curve in curves:
        color = _COLORS[curve.color % len(_COLORS)]
        if curve.rings:
            rings = ['<circle cx="{:.1f}" cy="{:.1f}" r="5"/>'.format(*place(*point)) for point in curve.points]
            parts.append(f'<g fill="none" stroke="{color}" stroke-width="2">{"".join(rings)}</g>')
            continue
        corners = "L".join("{:.1f} {:.1f}".format(*place(*point)) for point in curve.points)
        parts.append(f'<path d="M{corners}" fill="none" stroke="{color}" stroke-width="2" stroke-linejoin="round"/>')
    named = [curve for curve in curves if curve.label is not None]
    edge = _LEFT + 20 if names_left else _WIDTH - 290
    for row, curve in enumerate(named):
        y = _TOP + 14 + 18 * row
        color = _COLORS[curve.color % len(_COLORS)]
        parts.append(f'<path d="M{edge} {y - 4}h22" stroke="{color}" stroke-width="3"/>')
        parts.append(f'<text x="{edge + 28}" y="{y}">{escape(curve.label or "")}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _x_ticks(scale: Scale, curves: Sequence[Curve], log_x: bool) -> list[float]:
    if log_x:
        return sorted({x for curve in curves for x, _ in curve.points})
    return ticks(scale.low, scale.high, nice_step(scale.high - scale.low, 6))


def _label(value: float) -> str:
    return short_count(value) if abs(value) >= 10_000 else significant(value)
