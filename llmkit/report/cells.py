"""What stands in the cells of the page's tables: figures with fitting decimals, pictures of intervals, stacked bars."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.report import format as text
from llmkit.report.charts import Scale
from llmkit.report.data import Ledger, LedgerRow
from llmkit.report.results import Row, Score
from llmkit.report.stages import Stage, Status


def standing(stages: Sequence[Stage]) -> str:
    """How the stages stand, in a few words: `16 stages, 3 complete, 13 missing`."""
    found = Counter(stage.status for stage in stages)
    whole = f"{len(stages)} stage{'' if len(stages) == 1 else 's'}"
    if len(found) == 1:
        return f"{whole}, {'' if len(stages) == 1 else 'all '}{stages[0].status}"
    order: tuple[Status, ...] = ("complete", "out of date", "interrupted", "damaged", "missing")
    return ", ".join([whole, *(f"{found[status]} {status}" for status in order if found[status])])


def _decimals(row: Row) -> int:
    scores = [*row.scores.values(), *row.baselines.values()]
    widths = [
        (score.high - score.low) / 2
        for score in row.scores.values()
        if score.low is not None and score.high is not None and score.high > score.low
    ]
    return text.decimals_for((score.value for score in scores), min(widths, default=None))


def score_text(score: Score, row: Row) -> str:
    """A score with as many decimals as its row's intervals are worth."""
    return text.fixed(score.value, _decimals(row))


def interval_text(score: Score, row: Row) -> str:
    """`1.331 – 1.353`, or nothing where there is no interval."""
    if score.low is None or score.high is None:
        return ""
    decimals = _decimals(row)
    return f"{text.fixed(score.low, decimals)} – {text.fixed(score.high, decimals)}"


@dataclass(frozen=True)
class Whisker:
    """A score in the picture of its row: places in per cent from the left, and from the top in pixels."""

    style: str
    y: float
    value: float
    low: float
    high: float


WHISKER_GAP = 9.0


def whiskers(row: Row, models: Sequence[str]) -> list[Whisker]:
    """The models' scores of a row with their intervals, one below the other in the order of the columns.

    All of a row are on one scale, from the lowest bound to the highest.
    """
    scores = [(row.scores[name].mark or "plain", row.scores[name]) for name in models if name in row.scores]
    scores = [(style, score) for style, score in scores if math.isfinite(score.value)]
    if len(scores) < 2:
        return []
    ends = [(s.value if s.low is None else s.low, s.value if s.high is None else s.high) for _, s in scores]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    scale = Scale(low, high) if high > low else Scale(low - 1, high + 1)
    return [
        Whisker(style, WHISKER_GAP * (place + 0.5), *(round(100 * scale(value), 2) for value in (score.value, *bounds)))
        for place, ((style, score), bounds) in enumerate(zip(scores, ends, strict=True))
    ]


def reason_classes(ledger: Ledger) -> list[tuple[str, str]]:
    """Each reason for dropping with its colour class: one each for the most frequent ones, one for all others."""
    colors = [*(f"c{number}" for number in range(1, 7)), *["rest"] * len(ledger.reasons)]
    return list(zip(ledger.reasons, colors, strict=False))


def ledger_bar(row: LedgerRow, ledger: Ledger) -> list[dict[str, Any]]:
    """Segments of a bar from 0 to 100: what was kept, then what was dropped by reason."""
    parts = [("kept", "c0", row.kept)]
    parts += [(reason, style, row.dropped.get(reason, 0)) for reason, style in reason_classes(ledger)]
    whole = sum(number for _, _, number in parts)
    segments: list[dict[str, Any]] = []
    left = 0.0
    for name, style, number in parts:
        width = 100 * number / whole if whole else 0.0
        if number:
            segments.append({"name": name, "style": style, "x": round(left, 3), "width": round(width, 3)})
        left += width
    return segments
