"""Exact duplicates against a dictionary of texts, in any number of parts and shares."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from deduplication_support import Corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.deduplication.base import count_shares
from llmkit.data.deduplication.exact import Exact, content_key

TEXTS = st.lists(
    st.tuples(st.sampled_from(["", "a b", "a\n b ", "ab", "A b", "\u00e9 x", "e\u0301 x", "\u2003a b"]), st.booleans()),
    max_size=8,
)


@settings(deadline=None, max_examples=30)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.integers(0, 1), st.integers(1, 4))
def test_against_a_dictionary(parts: list[list[tuple[str, bool]]], earlier: int, shares: int) -> None:
    first: dict[str, str] = {}
    expected = {}
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(Path(folder), {"exact": True})
        for number, rows in enumerate(parts):
            before = number < earlier
            corpus.add([text for text, _ in rows], kept=None if before else [kept for _, kept in rows], earlier=before)
            for row, (text, kept) in enumerate(rows):
                if not (kept or before):
                    continue
                name = f"{number}.{row}"
                original = first.setdefault(" ".join(text.split()), name)
                if original != name and not before:
                    expected[name] = f"of {original}"
        assert corpus.drops(Exact(), shares) == expected


def test_both_halves_of_a_key_are_compared(tmp_path: Path) -> None:
    keys = {content_key(f"text {number}") for number in range(1000)}
    assert len({key[:8] for key in keys}) == len({key[8:] for key in keys}) == 1000
    corpus = Corpus(tmp_path, {"exact": True}).add(["one", "two", "one"])
    # The first halves of all keys made equal: the second ones still tell the texts apart.
    file = corpus.parts[0].keys / "exact.key.npy"
    np.save(file, np.zeros_like(np.load(file)))
    assert corpus.drops(Exact()) == {"0.2": "of 0.0"}


def test_shares_by_the_number_of_documents(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, {"exact": True}).add(["one", "two"]).add(["three"])
    assert Exact().shares(corpus.parts) == Exact().shares([]) == 1
    assert [count_shares(corpus.parts, "exact", entries) for entries in (1, 2, 3, 4)] == [3, 2, 1, 1]
