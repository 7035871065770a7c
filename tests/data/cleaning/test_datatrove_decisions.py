"""Decisions of datatrove 0.10.1 on generated texts, as `scripts/verify_filters.py --freeze` wrote them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from filter_support import make_filter, reasons

from llmkit.data.cleaning.base import Dropped
from llmkit.data.cleaning.c4_lines import C4Lines
from llmkit.data.cleaning.config import C4LinesConfig
from llmkit.data.cleaning.english import english_exceptions
from llmkit.data.cleaning.word_rules import Rules
from llmkit.store.documents import Document

FROZEN = [
    json.loads(line) for line in (Path(__file__).parent / "datatrove.jsonl").read_text("utf-8").split("\n") if line
]
NAMES = {
    "gopher_quality": {
        "gopher_short_doc": "too_few_words",
        "gopher_long_doc": "too_many_words",
        "gopher_below_avg_threshold": "short_words",
        "gopher_above_avg_threshold": "long_words",
        "gopher_too_many_hashes": "hashes",
        "gopher_too_many_ellipsis": "ellipses",
        "gopher_too_many_bullets": "bullet_lines",
        "gopher_too_many_end_ellipsis": "ellipsis_lines",
        "gopher_below_alpha_threshold": "few_alphabetic_words",
        "gopher_enough_stop_words": "few_stop_words",
    },
    "gopher_repetition": {
        "dup_para_frac": "duplicate_paragraphs",
        "dup_para_char_frac": "duplicate_paragraph_characters",
        "dup_line_frac": "duplicate_lines",
        "dup_line_char_frac": "duplicate_line_characters",
        **{f"top_{size}_gram": f"top_{size}gram" for size in (2, 3, 4)},
        **{f"duplicated_{size}_n_grams": f"duplicate_{size}grams" for size in range(5, 11)},
    },
    "fineweb": {
        "line_punct_ratio": "unpunctuated_lines",
        "short_line_ratio": "short_lines",
        "char_dup_ratio": "duplicate_characters",
        "list_ratio": "newlines",
    },
}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("row", FROZEN, ids=range(len(FROZEN)))
def test_words_are_those_of_datatrove(row: dict[str, Any]) -> None:
    rules = Rules(english_exceptions())
    words = [word for run in row["text"].split() for word in rules.split(run)]
    assert (len(words), digest("\n".join(words))) == (row["words"], row["digest"])


@pytest.mark.parametrize("name", sorted(NAMES))
def test_reasons_are_those_of_datatrove(name: str) -> None:
    expected = [row[name] and NAMES[name][row[name]] for row in FROZEN]
    assert len(set(expected)) >= 4
    assert reasons(make_filter(name), [row["text"] for row in FROZEN]) == expected


def test_c4_leaves_what_datatrove_leaves() -> None:
    step, found = C4Lines(C4LinesConfig()), make_filter("c4")
    after = step.apply([Document("", row["text"], "s", "p") for row in FROZEN])
    texts = ["" if isinstance(verdict, Dropped) else verdict.text for verdict in after]
    # Where datatrove finds too few sentences, all lines may be gone already, which has a reason of its own.
    names = {"too_few_sentences": "few_sentences", "lorem_ipsum": "lorem_ipsum", "curly_bracket": "curly_bracket"}
    assert reasons(found, texts) == [row["c4"] and names[row["c4"]] for row in FROZEN]
    assert [digest(text) for text, row in zip(texts, FROZEN, strict=True) if row["left"]] == [
        row["left"] for row in FROZEN if row["left"]
    ]
