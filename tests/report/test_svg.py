"""Charts as files."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from llmkit.report.svg import Curve, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def corners(path: str) -> list[tuple[float, float]]:
    """The points of a path of straight lines."""
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def lines(chart: str) -> list[list[tuple[float, float]]]:
    """The drawn curves."""
    return [
        corners(path.attrib["d"]) for path in ET.fromstring(chart).iter(f"{SVG}path") if path.get("stroke-linejoin")
    ]


def test_points_lie_where_the_scales_say() -> None:
    chart = line_chart(
        [Curve("a", [(0, 1.0), (5, 2.0), (10, 3.0)], 0), Curve(None, [(0, 3.0), (10, 1.0)], 0)],
        title="x < y", x_title="steps", y_title="loss",
    )  # fmt: skip
    first, second = lines(chart)
    (x0, y0), (x1, y1), (x2, y2) = first
    assert abs(x1 - (x0 + x2) / 2) < 0.11 and abs(y1 - (y0 + y2) / 2) < 0.11
    assert y2 < y1 < y0  # Higher values are higher up.
    assert second == [(x0, y2), (x2, y0)]
    words = [text.text for text in ET.fromstring(chart).iter(f"{SVG}text")]
    assert {"x < y", "steps", "loss", "a"} <= set(words) and words.count("a") == 1


def test_a_logarithmic_scale_puts_equal_factors_at_equal_distances() -> None:
    chart = line_chart(
        [Curve("a", [(1e-3, 1.0), (1e-2, 2.0), (1e-1, 1.0)], 0)], title="t", x_title="x", y_title="y", log_x=True
    )
    (x0, _), (x1, _), (x2, _) = lines(chart)[0]
    assert abs((x1 - x0) - (x2 - x1)) < 0.11


def test_rings_stand_where_a_line_would_turn() -> None:
    points = [(0.0, 0.0), (0.25, 0.5), (1.0, 1.0)]
    chart = line_chart(
        [Curve("theory", points, 0), Curve("measured", points, 1, rings=True)],
        title="t", x_title="x", y_title="y", names_left=True,
    )  # fmt: skip
    (line,) = lines(chart)
    rings = [(float(ring.attrib["cx"]), float(ring.attrib["cy"])) for ring in ET.fromstring(chart).iter(f"{SVG}circle")]
    assert rings == line
    names = {
        text.text: float(text.attrib["x"]) for text in ET.fromstring(chart).iter(f"{SVG}text") if "x" in text.attrib
    }
    assert names["theory"] == names["measured"] < (line[0][0] + line[2][0]) / 2
