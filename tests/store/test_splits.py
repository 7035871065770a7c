from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmkit.store.splits import Splits, split_of


def test_agrees_with_the_definition() -> None:
    fractions = Splits(validation=0.25, test=0.25)
    for number in range(200):
        key = f"document {number}"
        quarter = int(hashlib.sha256(f"7:{key}".encode()).hexdigest()[:16], 16) >> 62
        assert split_of(key, fractions, 7) == ("test", "validation", "train", "train")[quarter]


def test_fractions_come_out() -> None:
    fractions = Splits(validation=0.1, test=0.05)
    found = [split_of(str(number), fractions) for number in range(20_000)]
    assert found.count("validation") == pytest.approx(2000, abs=150)
    assert found.count("test") == pytest.approx(1000, abs=120)


@settings(max_examples=50)
@given(st.text(), st.integers(0, 2**32 - 1), st.floats(0, 0.4), st.floats(0, 0.4))
def test_enlarging_validation_moves_nothing_out_of_test(key: str, seed: int, test: float, validation: float) -> None:
    small = split_of(key, Splits(validation=0, test=test), seed)
    large = split_of(key, Splits(validation=validation, test=test), seed)
    assert (small == "test") == (large == "test")


def test_nothing_is_held_out_where_nothing_is_asked_for() -> None:
    nothing = Splits(validation=0, test=0)
    assert {split_of(str(number), nothing) for number in range(1000)} == {"train"}
    assert nothing.names() == ["train"]
    assert Splits().names() == ["train", "validation", "test"]


def test_another_seed_is_another_split() -> None:
    fractions = Splits(validation=0.25, test=0.25)
    keys = [str(number) for number in range(100)]
    assert [split_of(key, fractions, 1) for key in keys] != [split_of(key, fractions, 2) for key in keys]


def test_fractions_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="leaves nothing for training"):
        Splits(validation=0.5, test=0.5)
