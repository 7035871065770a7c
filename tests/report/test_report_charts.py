"""Curves and charts: what is read from a log, and where points are drawn, against closed forms."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.report.charts import Scale, metric_chart, nice_step, path, tick_label, ticks, value_scale
from llmkit.report.curves import Series, read_curves, smoothed, thinned

steps_and_values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300).map(
    lambda values: [(float(step), value) for step, value in enumerate(values)]
)


def write_log(directory: Path, lines: list[str]) -> None:
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_scale_is_linear() -> None:
    scale = Scale(2.0, 6.0)
    assert [scale(value) for value in (2.0, 3.0, 4.0, 6.0)] == [0.0, 0.25, 0.5, 1.0]


def test_path_places_known_points_upside_down_in_a_square_of_1000() -> None:
    drawn = path([(0.0, 0.0), (5.0, 1.0), (10.0, 0.25)], Scale(0.0, 10.0), Scale(0.0, 1.0))
    assert drawn == "M0 1000L500 0L1000 750"


def test_a_value_that_is_not_finite_breaks_the_line_there() -> None:
    points = [(0.0, 0.0), (1.0, 1.0), (3.0, 1.0), (4.0, 0.0)]
    assert path(points, Scale(0.0, 4.0), Scale(0.0, 1.0), gaps=[2.0]) == "M0 1000L250 0M750 0L1000 1000"


@pytest.mark.parametrize(
    ("span", "intervals", "step"),
    [(10, 5, 2.0), (1, 4, 0.25), (0.9, 4, 0.25), (7, 5, 2.0), (3200, 4, 1000.0), (6e-4, 4, 2e-4)],
)
def test_nice_steps(span: float, intervals: int, step: float) -> None:
    assert nice_step(span, intervals) == pytest.approx(step)


def test_ticks_are_the_multiples_within_the_ends() -> None:
    assert ticks(5, 23, 5) == [5, 10, 15, 20]
    assert ticks(-0.1, 0.1, 0.1) == pytest.approx([-0.1, 0.0, 0.1])


@settings(deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20))
def test_a_value_scale_holds_all_values_between_ends_that_are_ticks(values: list[float]) -> None:
    scale, step = value_scale(values)
    assert scale.low <= min(values) + 1e-6 * step
    assert scale.high >= max(values) - 1e-6 * step
    assert scale.low / step == pytest.approx(round(scale.low / step), abs=1e-6)
    assert scale.high / step == pytest.approx(round(scale.high / step), abs=1e-6)


@pytest.mark.parametrize(
    ("value", "step", "label"),
    [(0.0, 1, "0"), (2.5, 0.5, "2.5"), (0.25, 0.25, "0.25"), (3.0, 1, "3"), (-0.5, 0.5, "−0.5"), (1e-3, 2.5e-4, "1e-3"),
     (7.5e-4, 2.5e-4, "7.5e-4"), (17_500, 500, "17.5k"), (800, 200, "800"), (2_000_000, 500_000, "2.00M")],
)  # fmt: skip
def test_tick_labels(value: float, step: float, label: str) -> None:
    assert tick_label(value, step) == label


def test_a_chart_of_known_points() -> None:
    train = Series("loss", "train", ((0.0, 4.0), (50.0, 2.0), (100.0, 1.0)))
    validation = Series("loss", "validation", ((50.0, 3.0), (100.0, 0.0)))
    chart = metric_chart("sft", "loss", [train, validation])
    assert chart is not None
    assert [line.path for line in chart.lines] == ["M0 0L500 500L1000 750", "M500 250L1000 1000"]
    assert [line.marks for line in chart.lines] == ["M0 0h0M500 500h0M1000 750h0", "M500 250h0M1000 1000h0"]
    assert [(tick.place, tick.label) for tick in chart.y_ticks] == [(100 - 25 * n, f"{n}") for n in range(5)]
    assert [(tick.place, tick.label) for tick in chart.x_ticks] == [(20 * n, f"{20 * n}") for n in range(6)]
    assert json.loads(chart.data) == {
        "x": [0, 100], "y": [0, 4],
        "lines": [
            {"name": "training", "points": [[0, 4], [50, 2], [100, 1]]},
            {"name": "validation", "points": [[50, 3], [100, 0]]},
        ],
    }  # fmt: skip
    assert chart.facts == (
        "Training: last 1.000, lowest 1.000, highest 4.000.", "Validation: last 0, lowest 0, highest 3.000.",
    )  # fmt: skip


def test_one_point_and_equal_values_can_be_drawn_and_nothing_finite_cannot() -> None:
    chart = metric_chart("sft", "loss", [Series("loss", "train", ((7.0, 2.0),))])
    assert chart is not None
    assert chart.lines[0].path == "M500 500"
    chart = metric_chart("grpo", "clip_fraction", [Series("clip_fraction", "train", ((1.0, 0.0), (2.0, 0.0)))])
    assert chart is not None
    assert chart.lines[0].path == "M0 1000L1000 1000"
    assert metric_chart("sft", "loss", [Series("loss", "train", (), 3, (1.0, 2.0, 3.0))]) is None


def test_smoothing_is_a_centred_mean_that_stays_centred_at_the_ends() -> None:
    points = [(float(n), float(n * n)) for n in range(100)]
    result = smoothed(points)
    # The mean of n^2 over n-2..n+2 is n^2 + 2, over n-1..n+1 it is n^2 + 2/3.
    assert result[50] == (50.0, pytest.approx(50**2 + 2))
    assert result[1] == (1.0, pytest.approx(1 + 2 / 3))
    assert (result[0], result[99]) == ((0.0, 0.0), (99.0, 99.0**2))


@settings(deadline=None)
@given(steps_and_values, st.integers(4, 60))
def test_thinning_keeps_the_ends_and_the_extremes_in_order(points: list[tuple[float, float]], limit: int) -> None:
    kept = thinned(points, limit)
    assert len(kept) <= limit
    assert kept == sorted(set(kept))
    assert set(kept) <= set(points)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    values = [value for _, value in points]
    assert {min(values), max(values)} <= {value for _, value in kept}


def test_a_log_is_read_by_metric_and_split(tmp_path: Path) -> None:
    write_log(tmp_path, [
        '{"step": 10, "split": "train", "loss": 3.0, "lr": 0.1, "tokens": 100, "seconds": 1.5, "note": "text"}',
        '{"step": 10, "split": "validation", "loss": 3.5}',
        '{"step": 20, "split": "train", "loss": NaN, "lr": 0.2}',
        '{"step": 30, "split": "train", "loss": -Infinity, "lr": 0.1}',
        "not JSON",
        '{"step": 20, "split": "validation", "loss": 9.0}',
        '{"step": 20, "split": "validation", "loss": 2.5}',
        '{"step": 40, "split": "train", "loss": 1.0, "utilization": 0.4}',
    ])  # fmt: skip
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 50, "sp')
    curves = read_curves(tmp_path)
    assert list(curves.metrics) == ["loss", "lr", "utilization"]
    train, validation = curves.metrics["loss"]
    assert train == Series("loss", "train", ((10.0, 3.0), (40.0, 1.0)), 2, (20.0, 30.0))
    assert validation.points == ((10.0, 3.5), (20.0, 2.5))
    assert (curves.unreadable, curves.last_step) == (1, 40)
    assert (train.lowest, train.highest) == ((40.0, 1.0), (10.0, 3.0))


def test_noisy_lines_are_smoothed_over_their_points_and_smooth_ones_are_not(tmp_path: Path) -> None:
    noisy = Series("loss", "train", tuple((float(n), n + 5.0 * (n % 2)) for n in range(100)))
    chart = metric_chart("sft", "loss", [noisy])
    assert chart is not None
    assert [(line.name, line.style) for line in chart.lines] == [
        ("training", "train raw"),
        ("training, smoothed", "train"),
    ]
    smooth = Series("lr", "train", tuple((float(n), math.cos(n / 40)) for n in range(100)))
    chart = metric_chart("sft", "lr", [smooth])
    assert chart is not None
    assert [line.style for line in chart.lines] == ["train"]


def test_no_log_gives_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path).metrics == {}


def test_bad_steps_are_told_in_words_and_draw_no_curve(tmp_path: Path) -> None:
    write_log(tmp_path, [
        '{"step": 1, "split": "train", "loss": 3.0}',
        '{"step": 2, "split": "train", "skipped_steps": 1}',
        '{"step": 9, "split": "train", "loss": 2.0, "skipped_steps": 2, "passed_over_steps": 7, "rewinds": 1}',
    ])  # fmt: skip
    curves = read_curves(tmp_path)
    assert list(curves.metrics) == ["loss"]
    assert curves.setbacks == (
        "Training: 2 bad steps left out (loss or gradient not finite, or a spike); "
        "went back once to pass over the data of 7 steps."
    )
    write_log(tmp_path, ['{"step": 1, "split": "train", "loss": 3.0}'])
    assert read_curves(tmp_path).setbacks is None
