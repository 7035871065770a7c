"""What counts as evaluation data in a text: planted pieces, and a slow definition of the same."""

from __future__ import annotations

import json
import random
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from decontamination_support import against, dropped, measure, named, verdicts, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.decontamination import index
from llmkit.data.decontamination.index import Index
from llmkit.data.words import word_bounds, words_of

QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
    " How many clips did Natalia sell altogether in April and May?"
)
"""31 words."""
SHORT = "Which river flows through the city of Prague?"
"""8 words."""
FILLER = " ".join(f"word{number} goes by" for number in range(100))
"""300 words."""


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [{"question": "Too short to be looked for."}, {"question": QUESTION}, {"question": SHORT}]
    return write_rows(tmp_path / "test.jsonl", rows)


def test_planted_questions_are_found_however_they_are_written(tmp_path: Path, questions: Path) -> None:
    found = against(tmp_path / "index", named(questions))
    texts = [
        QUESTION,
        f"{FILLER}. {QUESTION} {FILLER}",
        QUESTION.upper().replace(",", "").replace("?", " !!"),
        QUESTION.replace(" ", "\n  "),
        "\u201c" + QUESTION.replace("clips", "\uff43\uff4c\uff49\uff50\uff53").replace("friends", "fri\u00adends"),
        f"An anthology: {SHORT.lower()} The Vltava.",
        # Twelve words of the question in a row are no n-gram; seven of the short one are not the whole.
        " ".join(QUESTION.split()[:12]),
        " ".join(SHORT.split()[:7]),
        # Every n-gram of the question is broken by another word.
        " and ".join([" ".join(QUESTION.split()[:12]), " ".join(QUESTION.split()[12:24])]),
        "Too short to be looked for.",
        FILLER,
        "",
    ]
    assert dropped(found, texts) == [True] * 6 + [False] * 6


def test_what_was_found_and_where_can_be_read(tmp_path: Path, questions: Path) -> None:
    found = against(tmp_path / "index", named(questions))
    text = f"See:\n{SHORT}\n\nAnd {QUESTION}"
    (verdict,) = verdicts(found, [text])
    assert verdict is not None
    assert verdict.reason == "contaminated"
    # One place of the short question and 31 - 13 + 1 of the other; all words but "See" and "And", of 41.
    share = f"{39 / 41:.1%}"
    assert verdict.detail == (
        f'20 matches, {share} of the words; {questions}:3: "Which river flows through the city of Prague"'
    )
    assert measure(found, [text])["share"] == [float(np.float32(39 / 41))]


def test_a_long_stretch_is_shown_by_its_beginning(tmp_path: Path) -> None:
    long = " ".join(f"{letter * 30}" for letter in "abcdefghijklmnop")
    found = against(tmp_path / "index", named(write_rows(tmp_path / "a.jsonl", [{"t": long}])))
    shown = str(measure(found, [long])["found"][0]).partition('"')[2].removesuffix('"')
    assert shown == long[:159] + "\u2026"


def test_a_long_document_may_quote_a_sentence(tmp_path: Path, questions: Path) -> None:
    # 31 of 331 words are the question's: less than a tenth.
    quoting = f"{FILLER}. {QUESTION}"
    copying = f"word goes by. {QUESTION}"
    assert dropped(against(tmp_path / "1", named(questions)), [quoting, copying]) == [True, True]
    assert dropped(against(tmp_path / "2", named(questions), min_share=0.1), [quoting, copying]) == [False, True]
    exactly = 31 / 331
    assert dropped(against(tmp_path / "3", named(questions), min_share=exactly), [quoting]) == [True]
    assert dropped(against(tmp_path / "4", named(questions), min_matches=19), [quoting]) == [True]
    assert dropped(against(tmp_path / "5", named(questions), min_matches=20), [quoting, copying]) == [False, False]


def test_characters_of_scripts_without_spaces_are_words(tmp_path: Path) -> None:
    long, short = (
        "\u5929\u5730\u7384\u9ec4\u5b87\u5b99\u6d2a\u8352\u65e5\u6708\u76c8\u6603\u8fb0\u5bbf",
        "\u5bd2\u6765\u6691\u5f80\u79cb\u6536\u51ac\u85cf",
    )
    found = against(tmp_path / "index", named(write_rows(tmp_path / "a.jsonl", [{"a": long}, {"a": short}])))
    texts = [
        f"\u4ed6\u8bf4{long}\u3002",
        # The first thirteen of fourteen, with full stops between.
        "\uff0c".join(long[:13]),
        long[:12],
        f"\u4ed6\u8bf4\uff1a\u300c{short}\u300d",
        short[:7],
    ]
    assert dropped(found, texts) == [True, True, False, True, False]


def test_a_stretch_over_two_documents_is_none(tmp_path: Path, questions: Path) -> None:
    words = QUESTION.split()
    found = against(tmp_path / "index", named(questions))
    halves = [" ".join(words[:12]), " ".join(words[12:24]), " ".join(SHORT.split()[:4]), " ".join(SHORT.split()[4:])]
    assert measure(found, halves)["matches"] == [0, 0, 0, 0]


def test_every_planted_question_of_a_benchmark_is_found_and_nothing_else(tmp_path: Path) -> None:
    draw = random.Random(3)
    nouns = [f"{a}{b}" for a in ("apple", "clip", "train", "coin") for b in ("s", "box", "shop", "maker", "house")]
    rows = [
        {"question": f"Case {number}: " + " ".join(draw.choices(nouns, k=draw.randint(10, 40))), "answer": str(number)}
        for number in range(400)
    ]
    found = against(tmp_path / "index", named(write_rows(tmp_path / "test.jsonl", rows)))
    texts: list[str] = []
    expected: list[str | None] = []
    for number in range(300):
        around = draw.sample(nouns, 9)
        if number % 3:
            texts.append(" ".join(around))
            expected.append(None)
        else:
            row = draw.randrange(400)
            texts.append(f"{' '.join(around)}; {rows[row]['question'].upper()} - {' '.join(around)}")
            expected.append(f"{tmp_path}/test.jsonl:{row + 1}")
    names = [name and name.rpartition(': "')[0] for name in measure(found, texts)["found"]]
    assert names == expected


def slow_words(text: str) -> list[str]:
    """Words by their definition, one character after another."""
    words: list[str] = []
    inside = False
    for character in unicodedata.normalize("NFKC", text.replace("\u200b", "")):
        alone = "\u4e00" <= character <= "\u9fff"
        letter = unicodedata.category(character)[0] in "LMN"
        if letter and inside and not alone:
            words[-1] += character.lower()
        elif letter:
            words.append(character.lower())
        inside = letter and not alone
    return words


def slow_measure(rows: Sequence[Sequence[str]], text: str, ngram: int, least: int) -> tuple[int, float, int | None]:
    """Matches, share, and the number of the row of the first match, by comparing everything with everything."""
    needles: dict[tuple[str, ...], int] = {}
    for number, texts in enumerate(rows):
        for words in map(slow_words, texts):
            pieces = [words[i : i + ngram] for i in range(len(words) - ngram + 1)]
            for piece in pieces or ([words] if len(words) >= least else []):
                needles.setdefault(tuple(piece), number)
    words = slow_words(text)
    first: int | None = None
    places: set[int] = set()
    covered: set[int] = set()
    for begin in range(len(words)):
        for size in range(least, ngram + 1):
            row = needles.get(tuple(words[begin : begin + size])) if begin + size <= len(words) else None
            if row is not None:
                first = row if first is None else first
                places.add(begin)
                covered.update(range(begin, begin + size))
    return len(places), len(covered) / max(len(words), 1), first


some_words = st.lists(
    st.sampled_from(["a", "A", "b", "\u00c9t\u00e9", "e\u0301te\u0301", "\u6f22\u5b57", "7"]), max_size=14
)
prose = st.builds(
    lambda words, gaps: "".join(word + gap for word, gap in zip(words, gaps, strict=False)),
    some_words,
    st.lists(st.sampled_from([" ", ", ", "\n", "-", " \u200b"]), min_size=14, max_size=14),
)


@given(
    st.lists(st.lists(prose, max_size=3), max_size=6),
    st.lists(prose, min_size=1, max_size=6),
    st.integers(3, 6),
    st.integers(3, 6),
    st.sampled_from([20, 1 << 22]),
)
@settings(max_examples=50, deadline=None)
def test_it_is_the_slow_definition(rows: list[list[str]], texts: list[str], ngram: int, least: int, held: int) -> None:
    least = min(ngram, least)
    rows = [*rows, ["only these seven words are long enough"]]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        # Few at a time, so that the index is merged of many pieces, and long texts are looked at in parts.
        patch.setattr(index, "SHARE_ENTRIES", held)
        patch.setattr(index, "_BATCH_CHARACTERS", held)
        patch.setattr(index, "_BLOCK", held // 20)
        file = write_rows(Path(folder) / "rows.jsonl", [{"texts": texts} for texts in rows])
        found = against(Path(folder) / "index", named(file), ngram=ngram, min_words=least)
        ours = measure(found, texts)
    for place, text in enumerate(texts):
        matches, share, row = slow_measure(rows, text, ngram, least)
        assert (ours["matches"][place], ours["share"][place]) == (matches, float(np.float32(share)))
        name = ours["found"][place]
        assert (name is None) == (row is None)
        if row is not None:
            assert name.startswith(f'{file}:{row + 1}: "')


def test_words_are_cut_where_their_hashes_are() -> None:
    for text in (
        "",
        "--",
        "One, two;\nthree",
        "a\u6f22\u5b57b c\u0301 \u0e01\u0e02",
        "x" * 600_000 + " y",
        "x y " * 200_000,
    ):
        begins, ends = word_bounds(text)
        pieces = [text[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        assert len(pieces) == len(words_of([text]).hashes)
        assert words_of(pieces[:1000]).hashes.tolist() == words_of([text]).hashes[:1000].tolist()


def test_an_index_is_sorted_each_key_once_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"t": " ".join(str(number % 700 + place) for place in range(20))} for number in range(1000)]
    file = write_rows(tmp_path / "a.jsonl", rows)
    against(tmp_path / "whole", named(file))
    monkeypatch.setattr(index, "SHARE_ENTRIES", 500)
    monkeypatch.setattr(index, "_BATCH_CHARACTERS", 2000)
    against(tmp_path / "pieces", named(file))
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "pieces").iterdir())
    keys = np.load(tmp_path / "whole/key.npy", mmap_mode="r")
    # Numbers from 0 to 718 in a row have 707 stretches of 13.
    assert len(keys) == len(np.unique(keys)) == 707
    for name in ("key.npy", "row.npy", "names.npy"):
        assert np.array_equal(np.load(tmp_path / "whole" / name), np.load(tmp_path / "pieces" / name))
    opened = Index(tmp_path / "pieces")
    assert opened.name(999) == f"{file}:1000"
    found = opened.find(words_of([json.dumps(rows[3])]))
    # All eight stretches of the fourth row; the first row that has each begins there or before.
    assert found.row.tolist() == [0, 0, 0, 0, 0, 1, 2, 3]
