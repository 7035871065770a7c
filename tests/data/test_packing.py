from __future__ import annotations

import itertools
from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.packing import best_fit, divisible


def fewest(lengths: tuple[int, ...], capacity: int) -> int:
    """The least number of rows, by trying every way to fill them (sets of sequences as bits)."""

    @cache
    def least(left: int) -> int:
        if not left:
            return 0
        first = left & -left
        others = [1 << n for n in range(len(lengths)) if left >> n & 1 and 1 << n != first]
        found = len(lengths)
        for size in range(len(others) + 1):
            for chosen in itertools.combinations(others, size):
                row = first | sum(chosen)
                if sum(length for n, length in enumerate(lengths) if row >> n & 1) <= capacity:
                    found = min(found, 1 + least(left & ~row))
        return found

    return least((1 << len(lengths)) - 1)


def test_the_longest_come_first_and_fill_up_what_has_least_room() -> None:
    # 7 | 6 | 4 goes to 6 | 3 to 7 | 2 has no room | the last 1 begins nothing new.
    rows = best_fit(np.array([3, 7, 2, 6, 4, 1]), 10)
    assert [row.tolist() for row in rows] == [[0, 1], [3, 4], [2, 5]]
    assert best_fit(np.zeros(0, np.int64), 5) == []
    assert [row.tolist() for row in best_fit(np.array([9, 2, 3]), 5)] == [[0], [1, 2]]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(12, 20))
def test_rows_are_few_and_none_is_too_long(lengths: list[int], capacity: int) -> None:
    rows = best_fit(np.array(lengths), capacity)
    assert sorted(itertools.chain(*(row.tolist() for row in rows))) == list(range(len(lengths)))
    sums = [sum(lengths[n] for n in row) for row in rows]
    assert max(sums) <= capacity
    # No row has room for another.
    assert all(a + b > capacity for a, b in itertools.combinations(sums, 2))
    assert len(rows) <= 11 / 9 * fewest(tuple(lengths), capacity) + 6 / 9


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(50, 80), st.integers(1, 6))
def test_rows_are_shared_evenly_among_ranks(lengths: list[int], capacity: int, count: int) -> None:
    if count > len(lengths):
        return
    rows = best_fit(np.array(lengths), capacity)
    shared = divisible(rows, np.array(lengths), count)
    assert len(shared) % count == 0
    assert len(shared) > 0
    assert all(len(row) for row in shared)
    assert sorted(itertools.chain(*(row.tolist() for row in shared))) == list(range(len(lengths)))
    if len(shared) >= len(rows):
        assert max(sum(lengths[n] for n in row) for row in shared) <= capacity
    if count == 1:
        assert sorted(map(tuple, shared)) == sorted(map(tuple, rows))


def test_long_tails_are_packed_tightly() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, 4000).astype(np.int64).clip(1, 2048)
    rows = best_fit(lengths, 2048)
    assert len(rows) == -(-int(lengths.sum()) // 2048)
