from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.cleaning.base import Dropped, Filter
from llmkit.data.cleaning.config import LengthConfig, RepetitionConfig
from llmkit.data.cleaning.length import Length
from llmkit.data.cleaning.repetition import Repetition, duplicate_line_fraction, top_ngram_fraction
from llmkit.store.documents import Document


def decide(decides: Filter, texts: list[str]) -> list[Dropped | None]:
    measured = decides.measure([Document("", text, "s", "p") for text in texts])
    assert list(measured) == list(decides.columns)
    return decides.judge({name: np.asarray(values) for name, values in measured.items()})


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        ("", 0),
        (" \n\t\n", 0),
        ("one\ntwo\nsix", 0),
        ("aa\nbb\naa\nbb", 4 / 8),
        ("aaaa\n  aaaa\nb\n\nb", 5 / 10),
        ("x\n" * 10, 9 / 10),
    ],
)
def test_duplicate_lines(text: str, fraction: float) -> None:
    assert duplicate_line_fraction(text) == pytest.approx(fraction)


@pytest.mark.parametrize(
    ("text", "size", "fraction"),
    [
        ("", 2, 0),
        ("one", 2, 0),
        ("one two three", 2, 0),
        # "a b" stands twice: 4 of 5 one-letter words.
        ("a b c a b", 2, 4 / 5),
        # Occurrences that overlap cover each word once.
        ("a a a a", 2, 1),
        # "aa" twice, "b" three times: 3 of 3 + 4 characters.
        ("b aa b aa b", 1, 3 / 7),
        # Equally frequent: "x yy" comes first, 6 of 6 + 2 + 1 characters.
        ("x yy x yy q q z z", 2, 6 / 10),
        ("x yy z x yy z long", 3, 8 / 12),
    ],
)
def test_top_ngram(text: str, size: int, fraction: float) -> None:
    assert top_ngram_fraction(text, size) == pytest.approx(fraction)


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=20), st.integers(1, 4))
def test_top_ngram_against_a_slow_definition(words: list[str], size: int) -> None:
    starts = range(len(words) - size + 1)
    counts = [sum(words[j : j + size] == words[i : i + size] for j in starts) for i in starts]
    expected = 0.0
    if counts and max(counts) > 1:
        best = words[counts.index(max(counts)) :][:size]
        inside = [any(words[j : j + size] == best and j <= i < j + size for j in starts) for i in range(len(words))]
        expected = sum(len(w) for w, hit in zip(words, inside, strict=True) if hit) / len("".join(words))
    assert top_ngram_fraction(" ".join(words), size) == pytest.approx(expected)


def test_limits_decide_and_the_detail_says_what_was_found() -> None:
    decides = Repetition(RepetitionConfig(max_duplicate_lines=0.5, max_top_ngram=0.5, ngram=2, min_characters=5))
    texts = ["aaa\naaa", "aaa\naaa\naaa", "a b q w e r", "a b a b q", "a\na"]
    verdicts = decide(decides, texts)
    assert [verdict and verdict.reason for verdict in verdicts] == [
        None,
        "repeated_lines",
        None,
        "repeated_words",
        None,
    ]
    assert verdicts[1] == Dropped("repeated_lines", "67% of the characters are in lines that came before")
    assert verdicts[3] == Dropped("repeated_words", "one 2-gram covers 80% of the characters")


def test_lengths_are_limits_of_what_is_not_white_space_around() -> None:
    decides = Length(LengthConfig(min_characters=2, max_characters=4))
    texts = ["", "a", "ab", "abcd", "abcde", "  a  ", " abcd\n", "äöüß", "a  b "]
    reasons = [verdict and verdict.reason for verdict in decide(decides, texts)]
    assert reasons == ["too_short", "too_short", None, None, "too_long", "too_short", None, None, None]
