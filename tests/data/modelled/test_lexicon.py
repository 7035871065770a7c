from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelled_support import make_filter, measure, reasons

from llmkit.data.modelled.lexicon import read_lexicon
from llmkit.data.words import words_of
from llmkit.errors import DataError

LIST = "# words that nobody likes\nturnip\n\nold turnip\t0.5\nwet  Turnip soup\t2\nSpinach\t0.25\n"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    (tmp_path / "list.txt").write_text(LIST, encoding="utf-8")
    return tmp_path / "list.txt"


def test_matches_and_shares_of_planted_words(listed: Path) -> None:
    texts = [
        "I like bread and butter.",
        "A TURNIP, a turnip!",
        "The old turnip soup",  # "old turnip" is longer than what begins behind it
        "wet turnip-soup and spinach",
        "turnips are no turnip",
        "...",
    ]
    measured = measure(make_filter("toxicity", lexicon=str(listed)), texts)
    assert measured["matches"] == [0, 2, 1, 2, 1, 0]
    assert measured["share"][:5] == pytest.approx([0, 2 / 4, 0.5 * 2 / 4, (2 * 3 + 0.25) / 5, 1 / 4])
    assert math.isnan(measured["share"][5])
    assert all(math.isnan(value) for value in measured["probability"])
    assert reasons(make_filter("toxicity", lexicon=str(listed), max_share=0.25), texts) == [
        None, "toxic_words", None, "toxic_words", None, None,
    ]  # fmt: skip


WORDS = ["turnip", "old", "wet", "soup", "spinach", "bread"]
ENTRIES = {("turnip",): 1.0, ("old", "turnip"): 0.5, ("wet", "turnip", "soup"): 2.0, ("spinach",): 0.25}


def _entry(text: list[str], place: int, size: int) -> tuple[str, ...]:
    return tuple(text[place : place + size]) if place + size <= len(text) else ()


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=12), min_size=1, max_size=6))
def test_matches_are_those_of_a_walk_from_word_to_word(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[str]]
) -> None:
    file = tmp_path_factory.getbasetemp() / "walk.txt"
    if not file.exists():
        file.write_text(LIST, encoding="utf-8")
    counts, sums = read_lexicon(file).find(words_of([" ".join(text) for text in texts]))
    for text, count, weighted in zip(texts, counts.tolist(), sums.tolist(), strict=True):
        place, expected, total = 0, 0, 0.0
        while place < len(text):
            size = next((n for n in (3, 2, 1) if _entry(text, place, n) in ENTRIES), 0)
            if size:
                expected += 1
                total += size * ENTRIES[_entry(text, place, size)]
            place += size or 1
        assert (count, weighted) == (expected, pytest.approx(total))


def test_lists_may_be_compressed_and_of_an_entry_twice_the_larger_weight_counts(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\ufeffturnip\t0.5\r\nTurnip\t3\r\n".encode()))
    assert measure(make_filter("toxicity", lexicon=str(tmp_path / "a.txt.gz")), ["turnip a"])["share"] == [1.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\tmuch\n", r"list\.txt:2: `much` is no weight above 0"),
        (b"a\t-1\n", "`-1` is no weight"),
        (b"a\n\n?!\n", r"list\.txt:3: there is no word in this entry"),
        (b"# nothing\n", "has no entry"),
        (b"a\n\xff\n", r"list\.txt:2: the list is no UTF-8"),
    ],
)
def test_lists_that_cannot_be_used_are_refused_with_their_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_lexicon(tmp_path / "list.txt")


def test_a_missing_list_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the list cannot be read"):
        read_lexicon(tmp_path / "nowhere.txt")
