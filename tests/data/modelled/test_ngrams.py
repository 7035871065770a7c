"""The n-gram model against the definition, worked out with dictionaries and fractions."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.modelled.ngrams import UNIT, NGrams, train
from llmkit.data.words import words_of

Gram = tuple[str, ...]


class Definition:
    """Interpolated modified Kneser-Ney, word for word as Chen & Goodman 1998 have it."""

    def __init__(self, texts: Sequence[Sequence[str]], order: int, min_count: int) -> None:
        occurrences: Counter[Gram] = Counter()
        before: dict[Gram, set[str | None]] = defaultdict(set)
        for text in texts:
            for size in range(1, order + 1):
                for start in range(len(text) - size + 1):
                    gram = tuple(text[start : start + size])
                    occurrences[gram] += 1
                    before[gram].add(text[start - 1] if start else None)
        self.vocabulary = sorted({gram[0] for gram in occurrences if len(gram) == 1})
        self.counts = {g: occurrences[g] if len(g) == order else len(before[g]) for g in occurrences}
        self.kept = {g for g in occurrences if len(g) < 3 or occurrences[g] >= min_count}
        self.order = order
        self.discounts = {size: self._discounts(size) for size in range(1, order + 1)}

    def _discounts(self, size: int) -> tuple[Fraction, ...]:
        of_count = Counter(count for gram, count in self.counts.items() if len(gram) == size)
        n1, n2, n3, n4 = (of_count[k] for k in (1, 2, 3, 4))
        if n1 and n2 and n3:
            y = Fraction(n1, n1 + 2 * n2)
            found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
            if all(0 < d < k for k, d in enumerate(found, 1)):
                return found
        return Fraction(1, 2), Fraction(1), Fraction(3, 2)

    def probability(self, context: Gram, word: str) -> Fraction:
        if not context and word not in self.vocabulary:
            word = "<unknown>"
        shorter = self.probability(context[1:], word) if context else Fraction(1, len(self.vocabulary) + 1)
        size = len(context) + 1
        behind = {g: c for g, c in self.counts.items() if len(g) == size and g[:-1] == context}
        total = sum(behind.values())
        if not total:
            return shorter
        shares = {g: (c - self.discounts[size][min(c, 3) - 1]) / total for g, c in behind.items() if g in self.kept}
        return shares.get((*context, word), Fraction(0)) + (1 - sum(shares.values())) * shorter

    def bits(self, text: Sequence[str]) -> list[float]:
        contexts = [tuple(text[max(0, place - self.order + 1) : place]) for place in range(len(text))]
        return [-math.log2(self.probability(context, word)) for context, word in zip(contexts, text, strict=True)]


def trained(texts: Sequence[Sequence[str]], order: int, min_count: int = 1) -> NGrams:
    return train(words_of([" ".join(text) for text in texts]), order, min_count)


def bits(model: NGrams, texts: Sequence[Sequence[str]]) -> list[float]:
    return (model.costs(words_of([" ".join(text) for text in texts])) / UNIT).tolist()


def drawn(seed: int, count: int = 30, letters: str = "abcdefg") -> list[list[str]]:
    draw = random.Random(seed)
    weights = [1 / (place + 1) for place in range(len(letters))]
    return [draw.choices(letters, weights, k=draw.randrange(1, 14)) for _ in range(count)]


def test_probabilities_worked_out_by_hand() -> None:
    # "a b" twice and "a c" once, each a text. Before b and c stands a alone, before a the beginning alone: each word
    # has one word before it. So few counts are not enough to find discounts: 0.5, 1 and 1.5.
    model = trained([["a", "b"], ["a", "b"], ["a", "c"]], order=2)
    # Single words: (1 - 0.5) / 3 each, which leaves a half for four words, the unknown one among them.
    single = 0.5 / 3 + 0.5 / 4
    # Behind a: b came twice of three times, c once; what is left is (1 + 0.5) / 3.
    b, c, unknown = 1 / 3 + 0.5 * single, 0.5 / 3 + 0.5 * single, 0.5 * 0.125
    assert bits(model, [["a", "b"]]) == pytest.approx([-math.log2(single), -math.log2(b)], abs=2e-6)
    assert bits(model, [["a", "c"], ["a", "z"]])[1::2] == pytest.approx([-math.log2(c), -math.log2(unknown)], abs=2e-6)
    # Nothing was ever seen behind b, or behind a word that is not known.
    assert bits(model, [["b", "a"], ["z", "a"]])[1::2] == pytest.approx([-math.log2(single)] * 2, abs=2e-6)
    assert b + c + (single + 0.125) * 0.5 == pytest.approx(1)


@pytest.mark.parametrize(("order", "min_count"), [(1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (5, 3)])
def test_probabilities_are_those_of_the_definition(order: int, min_count: int) -> None:
    texts = drawn(order, 60 if order > 2 else 25)
    definition, model = Definition(texts, order, min_count), trained(texts, order, min_count)
    fallback = (Fraction(1, 2), Fraction(1), Fraction(3, 2))
    assert any(found != fallback for found in definition.discounts.values()) or order == 1
    asked = [*texts[:6], *drawn(99, 6, "abcdxgyz"), ["q"], ["q", "a", "b"]]
    expected = [value for text in asked for value in definition.bits(text)]
    assert bits(model, asked) == pytest.approx(expected, abs=1e-5)


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8), min_size=1, max_size=8), st.integers(1, 4))
@settings(max_examples=25)
def test_probabilities_behind_any_words_sum_to_one(texts: list[list[str]], order: int) -> None:
    model = trained(texts, order, min_count=2)
    vocabulary = [*sorted({word for text in texts for word in text}), "unseen"]
    for context in [[], ["a"], ["b", "a"], ["unseen", "c"], *texts]:
        last = [bits(model, [[*context, word]])[-1] for word in vocabulary]
        assert sum(2**-value for value in last) == pytest.approx(1, abs=1e-4)


def test_texts_change_nothing_about_each_other_and_files_are_the_model(tmp_path: Path) -> None:
    texts = drawn(7, 40)
    model = trained(texts, 4)
    model.save(tmp_path)
    opened = NGrams.open(tmp_path)
    alone = [value for text in texts for value in bits(opened, [text])]
    assert bits(model, texts) == alone
    sums = [sum(bits(model, [text])) for text in [*texts, []]]
    assert opened.bits(words_of([" ".join(text) for text in [*texts, []]])).tolist() == pytest.approx(sums)


def test_equal_texts_in_another_order_give_equal_files(tmp_path: Path) -> None:
    texts = drawn(3, 30)
    for name, given_texts in (("one", texts), ("two", texts[::-1])):
        (tmp_path / name).mkdir()
        trained(given_texts, 3, 2).save(tmp_path / name)
    files = {name: {f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("one", "two")}
    assert files["one"] == files["two"]
    assert len(files["one"]) == 3 * 4 + 1


def test_rare_ngrams_are_left_out_from_three_words_on() -> None:
    texts = [["a", "b", "c", "d"], ["a", "b", "c", "e"]]
    assert [len(table.keys) for table in trained(texts, 3, 1).tables] == [5, 4, 3]
    assert [len(table.keys) for table in trained(texts, 3, 2).tables] == [5, 4, 1]


def test_a_large_table_finds_each_of_its_keys_and_nothing_else() -> None:
    words = [f"w{number}" for number in range(3000)]
    model = trained([words], 2)
    assert np.array_equal(np.sort(model.tables[1].find(model.tables[1].keys)), np.arange(2999))
    assert (model.tables[1].find(model.tables[0].keys) == -1).all()
