"""Lines and paragraphs that several documents have, against definitions that look at one unit after another."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from deduplication_support import Corpus, stretches
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.deduplication import units
from llmkit.data.deduplication.results import cut
from llmkit.data.deduplication.units import Units, line_entries

MIN_CHARACTERS = 4
LINES = st.sampled_from(
    [
        *("", "  ", "\t\r", "abcd", " ab  cd\r", "a b c d", "abc", "wxyz."),
        *("\u00e4\u00f6\u00fc", "\u00e4\u00f6\u00fc\u00df", "\u2003abcd", "\U0001f600" * 5),
    ]
)
TEXTS = st.lists(LINES, max_size=9).map("\n".join)
CORPORA = st.lists(st.lists(TEXTS, max_size=4), min_size=1, max_size=3)


def solid(text: str) -> str:
    """What of a unit counts: everything but the white space of ASCII."""
    return re.sub(r"[ \t\n\r\x0b\x0c]", "", text)


def lines(text: str) -> Iterator[tuple[int, str]]:
    """Where lines begin, and the lines with what ends them."""
    place = 0
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        yield place, line
        place += len(line)


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Where paragraphs begin, and their lines with the blank ones behind them."""
    found: list[tuple[int, str]] = []
    blank = True
    for place, line in lines(text):
        if not found or (blank and solid(line)):
            found.append((place, line))
        else:
            found[-1] = (found[-1][0], found[-1][1] + line)
        blank = not solid(line)
    yield from found


UNITS = {"lines": lines, "paragraphs": paragraphs}


def expected_texts(parts: list[list[str]], name: str, min_documents: int, copies: int) -> dict[str, str]:
    """What is left of each text that is changed."""
    documents = [(f"{number}.{row}", text) for number, texts in enumerate(parts) for row, text in enumerate(texts)]
    holders: dict[str, list[str]] = {}
    for document, text in documents:
        for _, unit in UNITS[name](text):
            mine = holders.setdefault(solid(unit), [])
            if document not in mine:
                mine.append(document)
    left = {}
    for document, text in documents:
        kept = ""
        for _, unit in UNITS[name](text):
            having = holders[solid(unit)]
            going = (
                len(solid(unit)) >= MIN_CHARACTERS and len(having) >= min_documents and having.index(document) >= copies
            )
            kept += "" if going else unit
        if kept != text:
            left[document] = kept
    return left


@pytest.mark.parametrize("name", UNITS)
@settings(deadline=None, max_examples=30)
@given(CORPORA, st.integers(2, 3), st.integers(0, 2), st.integers(1, 3))
def test_against_a_slow_definition(
    name: str, parts: list[list[str]], min_documents: int, copies: int, shares: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(Path(folder), {name: {"min_characters": MIN_CHARACTERS}})
        for texts in parts:
            corpus.add(texts)
        found = corpus.cuts(Units(name, min_documents, copies), shares)
    left = {
        document: cut(parts[int(document[0])][int(document[2:])], [np.array(cuts)]) for document, cuts in found.items()
    }
    assert left == expected_texts(parts, name, min_documents, copies)


@settings(deadline=None, max_examples=40)
@given(st.lists(TEXTS, max_size=6), st.integers(45, 90))
def test_a_long_text_is_divided_between_lines(texts: list[str], piece: int) -> None:
    whole = line_entries(texts, MIN_CHARACTERS).in_order()
    with mock.patch.object(units, "_PIECE", piece):
        divided = line_entries(texts, MIN_CHARACTERS).in_order()
    for column in ("key", "row", "begin", "end"):
        assert getattr(divided, column).tolist() == getattr(whole, column).tolist()


def test_a_line_longer_than_a_piece_is_divided_between_characters() -> None:
    text = "\u00e4\u00f6\U0001f600" * 30
    with mock.patch.object(units, "_PIECE", 50):
        found = line_entries([text, "x" * 20, text], 1).in_order()
    data = text.encode()
    pieces = sorted({(begin, end) for begin, end in zip(found.begin, found.end, strict=True) if end != 20})  # type: ignore[arg-type]
    assert "".join(data[begin:end].decode() for begin, end in pieces) == text
    # The same line gives the same keys in either document.
    assert sorted(found.key[found.row == 0]) == sorted(found.key[found.row == 2])


@pytest.mark.parametrize("name", UNITS)
def test_what_an_earlier_corpus_has_goes_and_nothing_of_it(tmp_path: Path, name: str) -> None:
    notice = "All rights reserved."
    corpus = Corpus(tmp_path, {name: {"min_characters": 10}})
    corpus.add([f"{notice}\n\nOne text.", f"{notice}\n\n{notice}"], earlier=True)
    corpus.add([f"Another text.\n\n{notice}\n\nIts end.", f"{notice}\n\n."], kept=[True, False])
    begin = len("Another text.\n\n")
    # A line goes with its newline, a paragraph with the blank lines behind it.
    end = begin + len(notice) + {"lines": 1, "paragraphs": 2}[name]
    assert corpus.cuts(Units(name, 2, 1)) == {"1.0": [[begin, end]]}
    # Both earlier documents are among the first two that have it.
    assert corpus.cuts(Units(name, 2, 2)) == {"1.0": [[begin, end]]}
    assert corpus.cuts(Units(name, 2, 3)) == {}
    # With the dropped one not counted there are three documents.
    assert corpus.cuts(Units(name, 4, 0)) == {}


@settings(deadline=None, max_examples=100)
@given(
    st.text(st.sampled_from("a\n \u00e9\u4e2d\U0001f600"), max_size=20),
    st.lists(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80)), max_size=3), max_size=3),
)
def test_what_is_left_is_text_made_of_characters_of_which_a_byte_is_left(
    text: str, methods: list[list[tuple[int, int]]]
) -> None:
    size = len(text.encode())
    gone = np.zeros(size, bool)
    cuts = []
    for pairs in methods:
        mine = np.zeros(size, bool)
        for begin, end in pairs:
            mine[begin:end] = True
        gone |= mine
        cuts.append(np.array(stretches(mine), np.int64).reshape(-1, 2))
    expected = ""
    place = 0
    for character in text:
        width = len(character.encode())
        expected += "" if gone[place : place + width].all() else character
        place += width
    assert cut(text, cuts) == expected
