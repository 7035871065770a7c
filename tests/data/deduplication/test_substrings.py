"""Repeated substrings against a definition that looks at every window of every text."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from deduplication_support import Corpus, stretches
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.deduplication import substrings
from llmkit.data.deduplication.results import cut
from llmkit.data.deduplication.substrings import Substrings, repeated_windows

# Few letters, so that stretches repeat; characters of two and four bytes whose halves are equal.
PIECES = ["abcabcab", "xyz", "\u00e4\u00f6\u00fc", "\U0001f600\U0001f601", "a", "b"]
TEXTS = st.one_of(
    st.text(st.sampled_from("ab\u00e4\u00f6"), max_size=40),
    st.lists(
        st.sampled_from(["abcabcab", "xyz", "\u00e4\u00f6\u00fc", "\U0001f600\U0001f601", "a", "b"]), max_size=9
    ).map("".join),
)
CORPORA = st.lists(st.lists(TEXTS, max_size=5), min_size=1, max_size=3)


def expected_cuts(parts: list[list[str]], size: int, kept: set[str], earlier: int) -> dict[str, list[list[int]]]:
    """Every window of every text, one after another: bytes of those that have come before."""
    seen: set[bytes] = set()
    cuts = {}
    for number, texts in enumerate(parts):
        for row, text in enumerate(texts):
            if f"{number}.{row}" not in kept:
                continue
            data = text.encode()
            gone = [False] * len(data)
            for begin in range(len(data) - size + 1):
                window = data[begin : begin + size]
                if window in seen:
                    gone[begin : begin + size] = [True] * size
                seen.add(window)
            if any(gone) and number >= earlier:
                cuts[f"{number}.{row}"] = stretches(gone)
    return cuts


@settings(deadline=None, max_examples=60)
@given(
    CORPORA, st.integers(0, 1), st.sampled_from([8, 9, 13]), st.sampled_from([4, 8]), st.sampled_from([20, 1 << 20]),
    st.integers(1, 3), st.randoms(use_true_random=False),
)  # fmt: skip
def test_against_every_window(
    parts: list[list[str]], earlier: int, size: int, anchor: int, piece: int, shares: int, draw: random.Random
) -> None:
    kept = set()
    with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(substrings, _ANCHOR=anchor, _PIECE=piece):
        corpus = Corpus(Path(folder), {"substrings": {"min_bytes": size}})
        for number, texts in enumerate(parts):
            mask = [number < earlier or draw.random() < 0.8 for _ in texts]
            corpus.add(texts, kept=None if number < earlier else mask, earlier=number < earlier)
            kept |= {f"{number}.{row}" for row, stays in enumerate(mask) if stays}
        found = corpus.cuts(Substrings(size), shares)
    assert found == expected_cuts(parts, size, kept, earlier)
    for document, cuts in found.items():
        # Ends of cuts may lie within a character; what is left is text, and part of what was.
        text = parts[int(document[0])][int(document[2:])]
        left = iter(text)
        assert all(character in left for character in cut(text, [np.array(cuts)]))


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.binary(max_size=12).map(lambda data: bytes(byte % 3 for byte in data)), max_size=6), st.integers(1, 4)
)
def test_windows_of_a_suffix_array(pieces: list[bytes], size: int) -> None:
    data = b"".join(piece + b"\xff" for piece in pieces)
    seen, expected = set(), []
    for begin in range(len(data) - size + 1):
        window = data[begin : begin + size]
        if b"\xff" not in window:
            if window in seen:
                expected.append(begin)
            seen.add(window)
    found = repeated_windows(np.frombuffer(bytearray(data), np.uint8), size)
    assert sorted(found.tolist()) == expected


def planted(draw: random.Random, count: int, stretch: str) -> list[str]:
    """Texts with a stretch in them, other letters before and behind it in each."""

    def prose(size: int) -> str:
        return "".join(draw.choice("abcdefghijklmnop ") for _ in range(size))

    ends = [chr(ord("!") + number) for number in range(count)]
    return [prose(draw.randint(100, 300)) + end + stretch + end + prose(draw.randint(100, 300)) for end in ends]


@pytest.mark.parametrize("shares", [1, 5])
def test_a_planted_stretch_goes_from_all_but_the_first(tmp_path: Path, shares: int) -> None:
    draw = random.Random(0)
    stretch = "".join(draw.choice("qrstuvwxyz") for _ in range(200))
    texts = planted(draw, 30, stretch)
    corpus = Corpus(tmp_path, {"substrings": {"min_bytes": 100}}).add(texts[:15]).add(texts[15:])
    places = {f"{row // 15}.{row % 15}": text.index(stretch) for row, text in enumerate(texts) if row}
    found = corpus.cuts(Substrings(100), shares)
    assert found == {document: [[place, place + 200]] for document, place in places.items()}


def test_what_comes_more_often_than_fits_a_suffix_array_is_compared_with_its_first_places(tmp_path: Path) -> None:
    draw = random.Random(1)
    stretch = "".join(draw.choice("qrstuvwxyz") for _ in range(150))
    texts = planted(draw, 40, stretch)
    corpus = Corpus(tmp_path, {"substrings": {"min_bytes": 100}}).add(texts[:20]).add(texts[20:])
    # Six places in one suffix array, and one open file at a time.
    with mock.patch.multiple(substrings, _COMPARED=2 * 100 * 6, _OPEN=1):
        found = corpus.cuts(Substrings(100))
    places = {f"{row // 20}.{row % 20}": text.index(stretch) for row, text in enumerate(texts) if row}
    assert found == {document: [[place, place + 150]] for document, place in places.items()}
