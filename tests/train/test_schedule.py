from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.train.schedule import rate_factor


def factor(step: int, name: str, **changes: Any) -> float:
    settings = {"total": 100, "warmup": 10, "decay": 20, "final_fraction": 0.1, **changes}
    return rate_factor(step + 1, name=name, **settings)


@pytest.mark.parametrize("name", ["cosine", "wsd", "linear", "inverse-sqrt", "constant"])
def test_warmup_rises_on_a_line_to_the_peak(name: str) -> None:
    assert [factor(step, name) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])


@pytest.mark.parametrize(("name", "last"), [("cosine", 0.1), ("wsd", 0.1), ("linear", 0.1), ("constant", 1.0)])
def test_the_last_step_has_the_final_fraction(name: str, last: float) -> None:
    assert factor(99, name) == pytest.approx(last)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    # 90 steps after the warm-up; the 45th of them is step 54.
    assert factor(54, "cosine") == pytest.approx(0.55)
    assert factor(9 + 30, "cosine") == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 3)) / 2)


def test_linear_falls_by_the_same_amount_every_step() -> None:
    assert [factor(9 + k, "linear") for k in (1, 30, 60)] == pytest.approx([1 - 0.9 * k / 90 for k in (1, 30, 60)])


def test_wsd_is_flat_and_then_falls_over_its_last_steps() -> None:
    assert {factor(step, "wsd") for step in range(9, 80)} == {1.0}
    assert [factor(79 + k, "wsd") for k in (1, 10, 20)] == pytest.approx([1 - 0.9 * k / 20 for k in (1, 10, 20)])


def test_inverse_square_root_halves_with_four_times_the_steps() -> None:
    assert factor(9, "inverse-sqrt") == pytest.approx(1.0)
    assert [factor(step, "inverse-sqrt") for step in (39, 89)] == pytest.approx([0.5, 1 / 3])
    assert factor(39, "inverse-sqrt", total=10_000) == pytest.approx(0.5)


@given(
    st.sampled_from(["cosine", "wsd", "linear", "inverse-sqrt", "constant"]),
    st.integers(1, 50),
    st.integers(0, 50),
    st.integers(1, 50),
    st.floats(0, 1),
)
def test_never_above_the_peak_nor_below_the_end_and_never_rising_again(
    name: str, steps: int, warmup: int, decay: int, final: float
) -> None:
    warmup, decay = min(warmup, steps), min(decay, steps)
    factors = [
        rate_factor(s + 1, name=name, total=steps, warmup=warmup, decay=decay, final_fraction=final)
        for s in range(steps)
    ]
    assert all(0 <= value <= 1 + 1e-12 for value in factors)
    after = factors[max(0, warmup - 1) :]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(after))
