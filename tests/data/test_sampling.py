from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.sampling import EpochSampler, KeyedPermutation
from llmkit.errors import DataError

SIZES = sorted({1, 2, 3, 4, 5, 6, 7, 97, 1009, 10_007, *(2**k + d for k in range(3, 15) for d in (-1, 0, 1))})


@pytest.mark.parametrize("n", SIZES)
def test_it_is_a_bijection(n: int) -> None:
    for key in ("0/0", "another"):
        assert np.array_equal(np.sort(KeyedPermutation(n, key)(np.arange(n))), np.arange(n))


@given(st.integers(1, 3000), st.text(max_size=5))
@settings(max_examples=50)
def test_it_is_a_bijection_for_any_size_and_key(n: int, key: str) -> None:
    assert len(set(KeyedPermutation(n, key)(np.arange(n)).tolist())) == n


def test_each_index_is_found_by_itself() -> None:
    permutation = KeyedPermutation(1000, "key")
    whole = permutation(np.arange(1000))
    assert [int(permutation(np.array([index]))[0]) for index in range(1000)] == whole.tolist()
    assert permutation(np.array([], dtype=np.int64)).size == 0


@pytest.mark.parametrize("n", [2**31, 10**12 + 39, 2**62 - 1, 2**62])
def test_huge_domains_cost_nothing(n: int) -> None:
    permutation = KeyedPermutation(n, "key")
    inputs = np.array([index * (n - 1) // 4999 for index in range(5000)])
    found = permutation(inputs)
    assert len(np.unique(found)) == len(inputs)
    assert 0 <= found.min() <= found.max() < n
    # Mean of uniform numbers: standard error n / sqrt(12 * 5000).
    assert abs(found.astype(np.float64).mean() / n - 0.5) < 5 / math.sqrt(12 * len(inputs))


def test_small_permutations_are_all_about_equally_likely() -> None:
    for n in (2, 3, 4):
        expected = 1200 / math.factorial(n)
        counts = dict.fromkeys(permutations(range(n)), 0)
        for key in range(1200):
            counts[tuple(KeyedPermutation(n, str(key))(np.arange(n)).tolist())] += 1
        chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
        freedom = len(counts) - 1
        # Five standard deviations of the chi-squared distribution.
        assert chi_squared < freedom + 5 * math.sqrt(2 * freedom), (n, counts)


def test_places_and_neighbours_look_random() -> None:
    n, keys = 50, 2000
    tables = np.stack([KeyedPermutation(n, str(key))(np.arange(n)) for key in range(keys)])
    counts = np.stack([np.bincount(tables[:, position], minlength=n) for position in range(n)])
    chi_squared = ((counts - keys / n) ** 2 / (keys / n)).sum()
    freedom = (n - 1) ** 2
    assert abs(chi_squared - freedom) < 5 * math.sqrt(2 * freedom)
    # Neighbours stay neighbours as often as in a shuffle: 2 of n ordered differences, over (n - 1) * keys pairs.
    pairs = (n - 1) * keys
    close = (np.abs(np.diff(tables, axis=1)) == 1).sum()
    assert abs(close - pairs * 2 / n) < 5 * math.sqrt(pairs * 2 / n)
    # Fixed points of a random permutation: one on average, variance one.
    assert abs((tables == np.arange(n)).sum() - keys) < 5 * math.sqrt(keys)
    large = KeyedPermutation(20_000, "x")(np.arange(20_000))
    assert abs(np.corrcoef(large, np.arange(20_000))[0, 1]) < 5 / math.sqrt(20_000)


def test_indices_outside_are_refused() -> None:
    with pytest.raises(IndexError):
        KeyedPermutation(5, "key")(np.array([5]))
    with pytest.raises(IndexError):
        KeyedPermutation(5, "key")(np.array([-1]))
    with pytest.raises(ValueError, match="out of range"):
        KeyedPermutation(0, "key")


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_every_epoch_visits_everything_once(n: int, batch: int, seed: int) -> None:
    sampler = EpochSampler(n, batch, seed)
    steps = math.ceil(3 * n / batch)
    stream = np.concatenate([sampler.indices(step) for step in range(steps)])[: 3 * n]
    for epoch in range(3):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(st.integers(1, 30), st.integers(1, 24), st.integers(1, 9), st.integers(0, 10**9))
@settings(max_examples=60)
def test_ranks_share_the_batch_of_one_process(n: int, batch: int, world: int, step: int) -> None:
    sampler = EpochSampler(n, batch, 1)
    parts = [sampler.indices(step, rank, world) for rank in range(world)]
    assert np.array_equal(np.concatenate(parts), sampler.indices(step))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_step_does_not_depend_on_the_ones_before() -> None:
    one = EpochSampler(1000, 32, 7)
    forward = [one.indices(step) for step in range(100)]
    other = EpochSampler(1000, 32, 7)
    for step in reversed(range(100)):
        assert np.array_equal(other.indices(step), forward[step])
    assert [one.epoch(step) for step in (0, 31, 32, 62, 63)] == [0, 0, 1, 1, 2]


def test_epochs_and_seeds_differ() -> None:
    sampler = EpochSampler(100, 100, 7)
    assert not np.array_equal(sampler.indices(0), sampler.indices(1))
    assert not np.array_equal(sampler.indices(0), EpochSampler(100, 100, 8).indices(0))


def test_nothing_to_sample_from_is_an_error() -> None:
    with pytest.raises(DataError, match="does not fill a single training window"):
        EpochSampler(0, 8, 1)
    with pytest.raises(ValueError, match="a batch of 0"):
        EpochSampler(8, 0, 1)
