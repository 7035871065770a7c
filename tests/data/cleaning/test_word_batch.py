from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.cleaning import word_batch, word_rules
from llmkit.data.cleaning.english import english_exceptions
from llmkit.data.cleaning.terminals import SENTENCE_ENDS
from llmkit.data.cleaning.word_batch import ALPHABETIC, ENDS_SENTENCE, PUNCTUATION, SYMBOL, Words, in_groups
from llmkit.data.cleaning.word_rules import Rules


def words_of(text: str) -> list[str]:
    rules = Rules(english_exceptions())
    return [word for run in text.split() for word in rules.split(run)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop.", ["Do", "n't", "stop", "."]),
        ("(well-known)", ["(", "well", "-", "known", ")"]),
        ("e.g. Dr. No", ["e.g.", "Dr.", "No"]),
        ("in the U.S. today...", ["in", "the", "U.S.", "today", "..."]),
        ("10km, £12.50", ["10", "km", ",", "£", "12.50"]),
        ("see https://example.org/a-b?c=d.", ["see", "https://example.org/a-b?c=d", "."]),
        ("and/or a/b", ["and/or", "a", "/", "b"]),
        ("it's John's :-)", ["it", "'s", "John", "'s", ":-)"]),
        ("今天天气很好。", ["今天天气很好", "。"]),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@settings(deadline=None)
@given(st.text(st.sampled_from("aB1.,-'’:/()$°s #…é中\u0301"), max_size=30))
def test_pieces_make_up_the_run_again(text: str) -> None:
    rules = Rules(english_exceptions())
    for run in text.split():
        pieces = rules.split(run)
        assert "".join(pieces) == run
        assert all(pieces)


def test_a_batch_counts_what_its_texts_have() -> None:
    batch = Words("english").of(["The cat, 3 dogs!", "", "the the The of ..."])
    assert batch.counts.tolist() == [6, 0, 5]
    assert batch.sum(batch.lengths).tolist() == [13, 0, 14]
    assert batch.having(ALPHABETIC).tolist() == [3, 0, 4]
    assert batch.having(SYMBOL).tolist() == [2, 0, 1]
    assert batch.having(PUNCTUATION).tolist() == [2, 0, 1]
    assert batch.having(ENDS_SENTENCE).tolist() == [1, 0, 0]
    assert batch.different(["the", "The", "of", "dog"]).tolist() == [1, 0, 3]


def test_what_came_before_changes_nothing() -> None:
    texts = ["some words here", "words of another text, here."]
    words = Words("english")
    words.of(["of of of text!"])
    first, alone = words.of(texts), Words("english").of(texts)
    assert first.starts.tolist() == alone.starts.tolist()
    for ours, other in zip(first.lexicon.hashes(first.numbers), alone.lexicon.hashes(alone.numbers), strict=True):
        assert ours.tolist() == other.tolist()


def test_the_next_filter_of_the_same_texts_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[Sequence[str]] = []
    original = Words._cut

    def counting(self: Words, texts: Sequence[str]) -> Any:
        cut.append(texts)
        return original(self, texts)

    monkeypatch.setattr(Words, "_cut", counting)
    words, first, second = Words("general"), ["one two", "three"], ["one", "two three four"]
    expected = [(words.of(texts).numbers.tolist(), words.of(texts).starts.tolist()) for texts in (first, second)]
    assert expected == [([0, 1, 2], [0, 2, 3]), ([0, 1, 2, 3], [0, 1, 4])]
    assert cut == [first, second]
    # Room for one of the two: the older goes.
    monkeypatch.setattr(word_batch, "_LAST_WORDS", 5)
    words.of(["five"])
    assert words.of(second).numbers.tolist() == [0, 1, 2, 3]
    assert cut == [first, second, ["five"]]
    assert words.of(first).starts.tolist() == [0, 2, 3]
    assert cut[3:] == [first]


@given(st.text(st.sampled_from("aZ9.-=,:~'\"`/<>+*^_ (é"), max_size=40))
def test_ascii_is_cut_by_the_rules_of_all_characters(run: str) -> None:
    characters = word_rules._characters()
    general = [found.span() for found in characters.inside(run)]
    if run.isascii():
        assert [found.span() for found in characters.inside_ascii(run)] == general
    assert Rules({})._infixes(run) == general


def test_a_full_lexicon_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_batch, "_LEXICON_CHARACTERS", 10)
    words = Words("general")
    before = words.of(["several long words"])
    after = words.of(["other words"])
    assert before.lexicon is not after.lexicon
    assert before.lengths.tolist() == [7, 4, 5]
    assert after.lengths.tolist() == [5, 5]


def test_hashes_are_those_of_the_characters_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    base, modulus = 0x9E3779B97F4A7C15, 2**64
    texts = ["abc", "é中"]
    expected = [sum((ord(c) + 1) * base ** (len(t) - 1 - i) for i, c in enumerate(t)) % modulus for t in texts]
    for at_once in (1 << 16, 2, 1):
        monkeypatch.setattr(word_batch, "_HASHED_AT_ONCE", at_once)
        batch = Words("general").of(texts)
        hashes, powers = batch.lexicon.hashes(batch.numbers)
        assert hashes.tolist() == expected
        assert powers.tolist() == [base ** len(text) % modulus for text in texts]


def test_long_texts_are_cut_at_white_space(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "some words " * 20 + "x" * 50 + "\u2003end"
    expected = Words("general").of([text, "b"])
    monkeypatch.setattr(word_batch, "_CHARACTERS", 7)
    found = Words("general").of([text, "b"])
    assert found.numbers.tolist() == expected.numbers.tolist()
    assert found.starts.tolist() == expected.starts.tolist() == [0, 42, 43]


def test_a_run_as_long_as_a_file() -> None:
    batch = Words("english").of(["ab" * 500_000 + "."])
    assert batch.lengths.tolist() == [1_000_000, 1]
    assert np.asarray(batch.lexicon.hashes(batch.numbers)).shape == (2, 2)


def test_groups_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_batch, "_GROUP_CHARACTERS", 5)
    assert list(in_groups(["ab", "cd", "e", "fghijk", "l"])) == [["ab", "cd"], ["e"], ["fghijk"], ["l"]]
    assert list(in_groups([])) == []


def test_signs_that_end_sentences() -> None:
    assert {".", "?", "!", "。", "？", "؟", "।", "…"} - SENTENCE_ENDS == {"…"}
