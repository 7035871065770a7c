"""Numbers and texts as a reader wants them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.report import format as text


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, "0"), (1234.5, "1,234"), (0.12345, "0.123"), (-2.4, "−2.40"), (9.999, "10.0"), (1.5e-4, "1.50 × 10⁻⁴"),
     (2.5e9, "2.50 × 10⁹"), (math.nan, "not a number"), (-math.inf, "−∞"), (None, "–"), (999_999.0, "1.00 × 10⁶")],
)  # fmt: skip
def test_significant_digits(value: float | None, expected: str) -> None:
    assert text.significant(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, "7"),
        (999, "999"),
        (999_600, "1.00 M"),
        (3_276_800, "3.28 M"),
        (12_345, "12.3 k"),
        (0.5, "0.500"),
        (None, "–"),
    ],
)
def test_short_counts(value: float | None, expected: str) -> None:
    assert text.short_count(value) == expected


def test_units() -> None:
    assert text.flops(2.32e14) == "232 TFLOP"
    assert text.flop_rate(5.2e11) == "520 GFLOP/s"
    assert text.file_size(409_204) == "409 kB"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.44, "0.4 s"), (42.2, "42 s"), (59.7, "1 min 00 s"), (184, "3 min 04 s"), (3725, "1 h 02 min"), (None, "–")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert text.duration(seconds) == expected


@pytest.mark.parametrize(
    ("values", "width", "decimals"),
    [
        ([1.342, 2.6], 0.011, 3),
        ([25.9], 0.7, 2),
        ([0.004, 0.613], 0.006, 3),
        ([0.0004], 0.0001, 5),
        ([3.0], None, 3),
        ([1500.0], 80.0, 0),
    ],
)
def test_decimals_follow_the_interval(values: list[float], width: float | None, decimals: int) -> None:
    assert text.decimals_for(values, width) == decimals


@settings(deadline=None)
@given(st.text())
def test_slugs_are_ids_and_tell_names_apart(name: str) -> None:
    assert not set(text.slug(name)) & set(" \"'<>#")
    assert text.slug(name + "/") != text.slug(name + " ")


@settings(deadline=None)
@given(st.text(st.characters(categories=["Cs", "Lu", "Cc"])))
def test_any_text_can_be_encoded(value: str) -> None:
    text.encodable(value).encode("utf-8")
    assert text.encodable("héllo \U0001f600") == "héllo \U0001f600"
    assert not any(ord(character) < 32 and character not in "\t\n" for character in text.visible(value))
