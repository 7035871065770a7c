from __future__ import annotations

import pytest
from filter_support import make_filter, measure, reasons

from llmkit.data.cleaning.base import Dropped
from llmkit.data.cleaning.c4 import sentences
from llmkit.data.cleaning.c4_lines import C4Lines
from llmkit.data.cleaning.config import C4LinesConfig
from llmkit.data.cleaning.word_batch import Words
from llmkit.store.documents import Document

NOTHING = C4LinesConfig(end_marks=[], min_words=0, javascript=False, phrases=[], citations=False)


def left(text: str, config: C4LinesConfig | None = None) -> str | None:
    (verdict,) = C4Lines(config or C4LinesConfig()).apply([Document("", text, "s", "p")])
    return None if isinstance(verdict, Dropped) else verdict.text


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("Three words here.", True),
        ("Only two.", False),
        ("No end mark here", False),
        ("It trails off here...", False),
        ('He said "three words."', True),
        ("Please do enable JAVASCRIPT for this.", False),
        ("Read our Privacy Policy for more.", False),
        # The filter `c4` drops the document for these, which C4 comes to first.
        ("Lorem ipsum dolor and javascript.", True),
        ("The privacy policy { of this }.", True),
        ("Some javascript { of this }.", False),
        ("A " + "x" * 1001 + " in it.", False),
        ("A " + "x" * 1000 + " in it.", True),
    ],
)
def test_lines(line: str, kept: bool) -> None:
    assert left(f"The first line stays.\n  {line} \nThe last line stays.") == (
        f"The first line stays.\n{line}\nThe last line stays."
        if kept
        else "The first line stays.\nThe last line stays."
    )


def test_citations_are_taken_out_of_lines() -> None:
    assert left("It was built[12] in 1900.[] Then[edit] sold[citation needed].[a]") is None
    assert left("It was built[12] in 1900.[] Then[edit] sold[citation needed].") == "It was built in 1900. Then sold."
    # What stands in a line is looked at when they are out.
    assert left("We have a privacy[1] policy here.\nThat is all there is.") == "That is all there is."


def test_each_rule_can_be_off() -> None:
    text = "javascript\nuse cookies[1]\n...\n" + "x" * 1001
    assert left(text, NOTHING) == text.rpartition("\n")[0]
    assert left(text, NOTHING.model_copy(update={"max_word_characters": 2000})) == text
    assert left("one two\nthree", NOTHING.model_copy(update={"min_words": 2})) == "one two"
    assert left("a?\nb.", NOTHING.model_copy(update={"end_marks": ["?"]})) == "a?"


def test_a_document_without_lines_is_dropped() -> None:
    (verdict,) = C4Lines(C4LinesConfig()).apply([Document("", "Menu\nHome", "s", "p")])
    assert verdict == Dropped("no_lines", "none of 2 lines is left")


def test_a_document_that_stays_as_it_is_is_the_same() -> None:
    document = Document("", "All of it stays.", "s", "p")
    assert C4Lines(C4LinesConfig()).apply([document])[0] is document


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("word", 1),
        ("One. Two! Three?", 3),
        ("Really?! Yes...", 2),
        ('He said "Go." Then he went.', 2),
        ("Mr. Smith is 3.5 years old.", 1),
        ("...", 1),
        (". .", 1),
        ("一句。两句。", 1),
        ("Good。 Next。", 2),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert sentences(Words("english").of(["A. B c.", text, "D."])).tolist() == [1, count, 1]


def test_c4() -> None:
    found = make_filter("c4", min_sentences=2)
    texts = [
        "One here. Two there.",
        "One line.\nAnother one.",
        "One.",
        "Some LOREM ipsum {here.",
        "one { two. Three four.",
    ]
    assert measure(found, texts) == {
        "lorem_ipsum": [False, False, False, True, False],
        "curly_bracket": [False, False, False, True, True],
        "sentences": [2, 2, 1, 1, 2],
    }
    assert reasons(found, texts) == [None, None, "few_sentences", "lorem_ipsum", "curly_bracket"]
    lax = make_filter("c4", min_sentences=1, lorem_ipsum=False, curly_bracket=False)
    assert reasons(lax, texts) == [None] * 5
    assert reasons(lax, []) == []


def test_fineweb() -> None:
    found = make_filter("fineweb", short_line_characters=5)
    text = "A line.\n\n  \nshort\nA line.\nlast!\n"
    measured = {name: values[0] for name, values in measure(found, [text]).items()}
    assert measured == {
        "lines": 4,
        "punctuated_lines": 3 / 4,
        "short_lines": 2 / 4,
        "duplicate_characters": 7 / 26,
        "newlines_per_word": 6 / 9,
    }


@pytest.mark.parametrize(
    ("setting", "limit", "inside", "outside", "reason"),
    [
        ("min_punctuated_lines", 0.5, "a.\nb", "a.\nb\nc", "unpunctuated_lines"),
        ("max_short_lines", 0.5, f"a\n{'b' * 31}", "a\nb", "short_lines"),
        ("max_duplicate_characters", 0.25, "abc\nd\nd", "a\na\nb", "duplicate_characters"),
        ("max_newlines_per_word", 0.5, "a b\nc d\n", "a b\nc\nd\n", "newlines"),
    ],
)
def test_each_limit_of_fineweb(setting: str, limit: float, inside: str, outside: str, reason: str) -> None:
    nothing = {
        "min_punctuated_lines": 0.0,
        "max_short_lines": 1.0,
        "max_duplicate_characters": 1.0,
        "max_newlines_per_word": 1e9,
    }
    found = make_filter("fineweb", **{**nothing, setting: limit})
    assert reasons(found, [inside, outside, " \n"]) == [None, reason, "empty"]
