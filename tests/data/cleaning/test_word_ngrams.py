from __future__ import annotations

from collections import Counter
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.cleaning import word_ngrams
from llmkit.data.cleaning.word_batch import Words
from llmkit.data.cleaning.word_ngrams import duplicate_ngram_characters, top_ngram_characters

SIZES = (1, 2, 3, 5)
# Words that make up one another when put together, so that the two kinds of n-grams differ.
TEXTS = st.lists(st.lists(st.sampled_from(["a", "b", "ab", "ba", "xyz"]), max_size=25).map(" ".join), max_size=6)


def top_by_counting(text: str, size: int) -> int:
    words = text.split()
    grams = [" ".join(words[begin : begin + size]) for begin in range(len(words) - size + 1)]
    if not grams:
        return 0
    counts = Counter(grams)
    most = max(counts.values())
    return most * len(next(gram for gram in grams if counts[gram] == most))


def duplicates_from_left_to_right(text: str, size: int) -> int:
    words = text.split()
    seen: set[str] = set()
    begin = found = 0
    while begin + size <= len(words):
        gram = "".join(words[begin : begin + size])
        if gram in seen:
            found += len(gram)
            begin += size
        else:
            seen.add(gram)
            begin += 1
    return found


@settings(deadline=None, max_examples=150)
@given(TEXTS, st.sampled_from([1, 7, 1000]), st.sampled_from([2, 22]))
def test_against_slow_definitions(texts: list[str], block: int, bits: int) -> None:
    # In blocks of few words, and by few bits, which lets n-grams pass that come once.
    with mock.patch.multiple(word_ngrams, _BLOCK=block, _LOOP=block, _MOST_BITS=bits):
        check_against_slow_definitions(texts)


def check_against_slow_definitions(texts: list[str]) -> None:
    words = Words("general").of(texts)
    tops, repeated = top_ngram_characters(words, SIZES), duplicate_ngram_characters(words, SIZES)
    for size in SIZES:
        assert tops[size].tolist() == [top_by_counting(text, size) for text in texts]
        assert repeated[size].tolist() == [duplicates_from_left_to_right(text, size) for text in texts]


def test_the_most_frequent_is_counted_with_its_blanks_even_where_it_stands_once() -> None:
    words = Words("general").of(["cat dog cat dog emu", "one three five", "x"])
    assert top_ngram_characters(words, [2])[2].tolist() == [2 * len("cat dog"), len("one three"), 0]


def test_duplicates_are_compared_as_characters() -> None:
    # "ab c" and "a bc" are the same; what overlaps a duplicate is not one more.
    words = Words("general").of(["ab c x a bc", "a a a a a"])
    assert duplicate_ngram_characters(words, [2])[2].tolist() == [3, 4]


def test_no_sizes_no_measures() -> None:
    words = Words("general").of(["a b"])
    assert top_ngram_characters(words, []) == duplicate_ngram_characters(words, []) == {}
