"""Words and n-grams against definitions that look at one character after another."""

from __future__ import annotations

import unicodedata
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data import words
from llmkit.data.words import ngrams, word_bounds, words_of

ALONE = "中文日本語ぁカกไลາကខ𠀀"
# Small letters of another size (İ K Ⱥ ẞ), final sigma, marks, characters of four bytes, half a surrogate pair, and
# what no letter is.
CHARACTERS = "abzAB9 -_\n\x00éÉßẞİKȺΣςя가\u0301" + ALONE + "😀\ud800\u00a0\u2019\U000e0100\U00032400\U0010ffff"
TEXTS = st.lists(
    st.one_of(
        st.text(st.sampled_from(CHARACTERS), max_size=30),
        st.text(st.sampled_from("abA9 -"), max_size=60),
        st.integers(55, 140).map("aé".__mul__),
    ),
    max_size=6,
)


def cut(text: str) -> list[tuple[int, int]]:
    """Words by the definition of the module: runs of letters, digits and marks, and characters that stand alone."""
    found: list[tuple[int, int]] = []
    open_word = False
    for place, character in enumerate(text):
        if unicodedata.category(character)[0] not in "LNM" or ord(character) >= 0x32400:
            open_word = False
        elif character in ALONE:
            found.append((place, place + 1))
            open_word = False
        elif open_word:
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
            open_word = True
    return found


def small(text: str) -> str:
    return "".join(character.lower()[0] for character in text)


@pytest.mark.parametrize("dense", [0, 1.1, 9])
@settings(deadline=None, max_examples=100)
@given(TEXTS)
def test_words_are_equal_where_their_small_letters_are(dense: float, texts: list[str]) -> None:
    with mock.patch.object(words, "_DENSE", dense):
        found = words_of(texts)
    # By code points, which the other ways are to agree with.
    with mock.patch.object(words, "_DENSE", 0):
        assert words_of(texts).hashes.tolist() == found.hashes.tolist()
    expected = [[small(text[begin:end]) for begin, end in cut(text)] for text in texts]
    assert found.counts.tolist() == [len(each) for each in expected]
    names: dict[int, str] = {}
    for number, word in zip(found.hashes.tolist(), [word for each in expected for word in each], strict=True):
        assert names.setdefault(number, word) == word
    assert len(set(names.values())) == len(names)
    for text in texts:
        assert list(zip(*(places.tolist() for places in word_bounds(text)), strict=True)) == cut(text)


def test_words_do_not_depend_on_the_texts_around_nor_on_the_pieces() -> None:
    texts = ["one two " * 50, "", "drei vier f\u00fcnf " * 40, "\u4e00\u4e8c" * 30, "x" * 300]
    whole = words_of(texts)
    alone = [words_of([text]).hashes for text in texts]
    assert np.array_equal(whole.hashes, np.concatenate(alone))
    with mock.patch.object(words, "_PIECE", 64):
        pieces = words_of(texts)
    assert np.array_equal(pieces.begins[:-2], whole.begins[:-2])
    assert np.array_equal(pieces.hashes[: pieces.begins[-2]], whole.hashes[: whole.begins[-2]])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "cc"]), max_size=9), max_size=5), st.integers(1, 5))
def test_ngrams_are_equal_where_their_words_are(texts: list[list[str]], n: int) -> None:
    found = ngrams(words_of([" ".join(text) for text in texts]), n)
    expected = []
    for text in texts:
        # A short text is a single n-gram.
        size = min(n, len(text))
        expected.append([tuple(text[place : place + size]) for place in range(len(text) - size + 1)] if text else [])
    assert found.counts.tolist() == [len(each) for each in expected]
    names: dict[int, tuple[str, ...]] = {}
    for number, gram in zip(found.hashes.tolist(), [gram for each in expected for gram in each], strict=True):
        assert names.setdefault(number, gram) == gram
    assert len(set(names.values())) == len(names)
