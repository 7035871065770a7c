from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.pretrain.course import Course, Phase
from llmkit.pretrain.mixture import Mixture


def course(steps: int = 100, rows: int = 10) -> Course:
    return Course([Phase(rows, 8)], steps)


def test_fixed_shares_are_apportioned_as_webster_does() -> None:
    weights, taken = [5.0, 3.0, 1.0], [0, 0, 0]
    mixture = Mixture(weights, course())
    order = []
    for rows in range(1000):
        counts = mixture.counts(rows + 1)
        order.append(int(np.argmax(counts - taken)))
        assert sum(counts - taken) == 1
        taken = list(counts)
    assert taken == pytest.approx([1000 * 5 / 9, 1000 * 3 / 9, 1000 / 9], abs=1)
    # The k-th of a source falls due at (k + 1 - offset) / share.
    due = sorted(
        (Fraction(9, int(w)) * (k + 1 - Fraction(2 * s + 1, 6)), s) for s, w in enumerate(weights) for k in range(600)
    )
    assert order == [source for _, source in due[:1000]]


def test_equal_sources_take_turns() -> None:
    mixture = Mixture([1.0] * 4, course())
    counts = np.array([mixture.counts(rows) for rows in range(41)])
    assert (counts.max(1) - counts.min(1)).max() == 1


def test_shares_that_change_add_up_to_their_integral() -> None:
    # From 0.9 to 0.3 on a line: the mean over the first half is 0.75, over the whole 0.6.
    mixture = Mixture([[[0, 0.9], [1, 0.3]], [[0, 0.1], [1, 0.7]]], course())
    assert mixture.expected(np.array([500.0]))[0, 0] == pytest.approx(375)
    assert mixture.counts(500).tolist() == pytest.approx([375, 125], abs=1)
    assert mixture.counts(1000).tolist() == pytest.approx([600, 400], abs=1)
    assert mixture.mean_shares().tolist() == pytest.approx([0.6, 0.4])


def test_a_source_that_ends_gives_nothing_more() -> None:
    mixture = Mixture([[[0, 1.0], [0.5, 1.0], [0.6, 0.0]], 1.0], course())
    late = [mixture.counts(rows)[0] for rows in range(600, 1001)]
    assert len(set(late)) == 1
    assert late[0] == pytest.approx(0.5 * 500 + 100 * np.mean([x / (x + 1) for x in np.linspace(0, 1, 1001)]), abs=6)


def test_places_are_parts_of_the_tokens_whatever_the_length_of_sequences() -> None:
    # 50 steps of 10 x 4 tokens, then 50 of 10 x 12: half of the tokens are seen after 500 + 500 / 3 sequences.
    phases = Course([Phase(10, 4, steps=50), Phase(10, 12)], 100)
    step = [[0, 1.0], [0.5, 1.0], [0.5000001, 0.0]]
    mixture = Mixture([step, [[0, 0.0], [0.5, 0.0], [0.5000001, 1.0]]], phases)
    assert mixture.counts(1000).tolist() == pytest.approx([2000 / 3, 1000 / 3], abs=1)


@settings(deadline=None, max_examples=15)
@given(
    st.lists(
        st.one_of(
            st.floats(0.01, 10),
            st.tuples(st.floats(0.01, 10), st.floats(0, 10), st.floats(0, 10)).map(
                lambda v: [[0, v[0]], [0.4, v[1]], [1, v[2]]]
            ),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 10),
)
def test_every_prefix_has_its_shares(weights: list[float | list[list[float]]], rows: int) -> None:
    try:
        mixture = Mixture(weights, course(20, rows))
    except ValueError:
        return
    counts = np.array([mixture.counts(n) for n in range(20 * rows + 1)])
    assert counts[0].tolist() == [0] * len(weights)
    assert (np.diff(counts, axis=0).sum(1) == 1).all()
    assert np.diff(counts, axis=0).min() >= 0
    expected = mixture.expected(np.arange(20 * rows + 1, dtype=np.float64))
    assert expected.sum(1) == pytest.approx(np.arange(20 * rows + 1))
    assert (np.abs(counts - expected) <= 1 + len(weights) / 2).all()


def test_phases_follow_each_other() -> None:
    made = Course([Phase(4, 8, steps=3), Phase(2, 16, tokens=100), Phase(8, 32)], 20)
    # 100 tokens of 2 x 16 take four steps.
    assert [(s.first, s.batch_size, s.length) for s in made.stretches] == [(0, 4, 8), (3, 2, 16), (7, 8, 32)]
    sizes = [(made.at(step).batch_size, made.at(step).length) for step in range(20)]
    assert [made.rows_before(step) for step in range(20)] == [
        0, *itertools.accumulate(rows for rows, _ in sizes[:-1])
    ]  # fmt: skip
    assert [made.tokens_before(step) for step in range(20)] == [
        0, *itertools.accumulate(rows * length for rows, length in sizes[:-1])
    ]  # fmt: skip
    assert made.tokens == 3 * 32 + 4 * 32 + 13 * 256
    assert made.longest == 32
    assert made.progress(10) == pytest.approx((96 + 128 + 3 * 256) / made.tokens)


def test_a_training_that_ends_before_its_phases_do() -> None:
    made = Course([Phase(4, 8, steps=3), Phase(2, 16, steps=5), Phase(8, 32)], 4)
    assert (made.rows, made.tokens, made.longest) == (14, 3 * 32 + 32, 16)
