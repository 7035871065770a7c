from __future__ import annotations

import pytest
from filter_support import make_filter, measure, reasons, verdicts
from pydantic import ValidationError

from llmkit.data.cleaning.base import Dropped
from llmkit.data.cleaning.config import CleaningConfig, GopherRepetitionConfig
from llmkit.data.cleaning.gopher_repetition import duplicates, lines_of, paragraphs_of


def test_quality_measures() -> None:
    text = "The cat # sat on the mat...\n- with 42 dogs …\n  • and that"
    # Of The cat # sat on the mat ... - with 42 dogs … • and that, four are symbols; the bullet is none for datatrove.
    found = {name: values[0] for name, values in measure(make_filter("gopher_quality"), [text]).items()}
    assert found == {
        "words": 12,
        "mean_word_length": (3 + 3 + 3 + 2 + 3 + 3 + 4 + 2 + 4 + 1 + 3 + 4) / 12,
        "hashes_per_word": 1 / 16,
        "ellipses_per_word": 2 / 16,
        "bullet_lines": 2 / 3,
        "ellipsis_lines": 2 / 3,
        "alphabetic_words": 10 / 16,
        "stop_words": 4,
    }


def test_quality_of_nothing() -> None:
    found = measure(make_filter("gopher_quality"), ["", " \n"])
    assert all(values == [0, 0] for values in found.values())
    assert measure(make_filter("gopher_quality"), []) == {name: [] for name in found}


@pytest.mark.parametrize(
    ("setting", "limit", "inside", "outside", "reason"),
    [
        ("min_words", 3, "one two three", "one two !", "too_few_words"),
        ("max_words", 2, "one two ! ! !", "one two three", "too_many_words"),
        ("min_mean_word_length", 2.0, "ab ab", "ab a", "short_words"),
        ("max_mean_word_length", 2.0, "ab ab", "ab abc", "long_words"),
        ("max_symbols_per_word", 0.5, "word #", "##", "hashes"),
        ("max_symbols_per_word", 0.5, "word …", "word ...…", "ellipses"),
        ("max_bullet_lines", 0.5, "- a\nb", "- a\n\u2022 b\nc", "bullet_lines"),
        ("max_ellipsis_lines", 0.5, "a...\nb b b b", "a b c... \nd e f…\ng h", "ellipsis_lines"),
        ("min_alphabetic_words", 0.5, "a 1", "a 1 2", "few_alphabetic_words"),
        ("min_stop_words", 2, "the of", "the the", "few_stop_words"),
    ],
)
def test_each_limit_of_quality(setting: str, limit: float, inside: str, outside: str, reason: str) -> None:
    nothing = {
        "min_words": 0,
        "min_mean_word_length": 0.0,
        "max_mean_word_length": 1e9,
        "max_symbols_per_word": 1e9,
        "max_bullet_lines": 1.0,
        "max_ellipsis_lines": 1.0,
        "min_alphabetic_words": 0.0,
        "min_stop_words": 0,
    }
    found = make_filter("gopher_quality", **{**nothing, setting: limit})
    assert reasons(found, [inside, outside]) == [None, reason]


def test_the_first_limit_gives_the_reason_and_the_measure() -> None:
    found = make_filter("gopher_quality")
    verdict = verdicts(found, measure(found, ["# # #"]))
    assert verdict == [Dropped("too_few_words", "0 words")]


def test_thresholds_measure_nothing_again() -> None:
    plain, other = make_filter("gopher_quality"), make_filter("gopher_quality", min_words=3, min_alphabetic_words=0.5)
    assert plain.measuring == other.measuring
    assert plain.measuring != make_filter("gopher_quality", stop_words=["der", "die"]).measuring
    assert plain.measuring != make_filter("gopher_quality", words="general").measuring
    repetition = make_filter("gopher_repetition")
    assert repetition.measuring == make_filter("gopher_repetition", max_top_ngrams={2: 0.1, 3: 0.2, 4: 0.3}).measuring
    assert repetition.measuring != make_filter("gopher_repetition", max_top_ngrams={2: 0.1}).measuring


@pytest.mark.parametrize(
    ("text", "paragraphs", "lines"),
    [
        ("a\nb\n\nc", ["a\nb", "c"], ["a", "b", "c"]),
        ("\n\n a\n\n\n\nb\n \nc\n", ["a", "b\n \nc"], ["", " a", "b", " ", "c", ""]),
        ("a\n\n\nb", ["a", "b"], ["a", "b"]),
        ("", [""], []),
        ("\n", [""], ["", ""]),
    ],
)
def test_paragraphs_and_lines(text: str, paragraphs: list[str], lines: list[str]) -> None:
    assert paragraphs_of(text) == paragraphs
    assert lines_of(text) == lines


def test_duplicates_are_parts_that_came_before() -> None:
    assert duplicates(["ab", "c", "ab", "ab", "c"]) == (3, 5)
    assert duplicates(["ab", "c"]) == (0, 0)


def test_repetition_measures() -> None:
    text = "ab cd\nab cd\n\nx\n\nab cd\nab cd"
    found = make_filter("gopher_repetition", max_top_ngrams={2: 0.2}, max_duplicate_ngrams={4: 0.5})
    measured = {name: values[0] for name, values in measure(found, [text]).items()}
    assert measured == {
        "characters": 27,
        "duplicate_paragraphs": 1 / 3,
        "duplicate_paragraph_characters": 11 / 27,
        "duplicate_lines": 3 / 5,
        "duplicate_line_characters": 15 / 27,
        "top_2gram": 4 * 5 / 27,
        "duplicate_4grams": 8 / 27,
    }


def test_limits_of_repetition() -> None:
    nothing = {"max_top_ngrams": {}, "max_duplicate_ngrams": {}}
    lines = make_filter("gopher_repetition", **nothing, max_duplicate_lines=0.5, max_duplicate_line_characters=1.0)
    assert reasons(lines, ["a\nb\na\nb", "a\na\na", ""]) == [None, "duplicate_lines", "empty"]
    top = make_filter("gopher_repetition", max_top_ngrams={2: 0.7}, max_duplicate_ngrams={})
    # 2 of "a b", blank counted, are 6 of 9 and of 7 characters.
    assert reasons(top, ["a b c a b", "a b a b"]) == [None, "top_2gram"]


def test_sizes_of_ngrams_may_be_keys_of_json() -> None:
    settings = CleaningConfig(gopher_repetition=GopherRepetitionConfig())
    assert CleaningConfig.model_validate_json(settings.model_dump_json()) == settings
    with pytest.raises(ValidationError):
        GopherRepetitionConfig.model_validate({"max_top_ngrams": {0: 0.5}})
    with pytest.raises(ValidationError):
        GopherRepetitionConfig.model_validate({"max_top_ngrams": {"two": 0.5}})
