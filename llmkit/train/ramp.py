"""Settings that change over the training. No torch."""

from __future__ import annotations

import itertools
from typing import Annotated

from pydantic import AfterValidator, Field

Share = Annotated[float, Field(ge=0, le=1)]


def _ascending(points: list[list[float]]) -> list[list[float]]:
    """Refuse points that are no pairs from the training's begin towards its end."""
    if any(len(point) != 2 for point in points):
        raise ValueError("each point is [place, value]")
    places = [place for place, _ in points]
    if any(not 0 <= place <= 1 for place in places):
        raise ValueError("places are parts of the training, from 0 to 1")
    if any(later <= earlier for earlier, later in itertools.pairwise(places)):
        raise ValueError("places must ascend")
    return points


Points = Annotated[list[list[float]], Field(min_length=1), AfterValidator(_ascending)]
"""[[0, 0.3], [1, 0.15]]: a value at places from 0, the begin of the training, to 1, its end; a line in between."""


def value_at(setting: float | list[list[float]], place: float) -> float:
    """A setting's value at a place of the training: on the line between its points, and flat outside of them.

    Args:
        setting: one number, or `Points`.
        place: part of the training that is done, from 0 to 1.
    """
    if isinstance(setting, int | float):
        return float(setting)
    before = [point for point in setting if point[0] <= place]
    after = [point for point in setting if point[0] > place]
    if not before or not after:
        return float((before[-1:] or after[:1])[0][1])
    (first, low), (last, high) = before[-1], after[0]
    return low + (high - low) * (place - first) / (last - first)
