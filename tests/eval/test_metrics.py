from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import BootstrapAggregator
from sacrebleu import corpus_bleu, corpus_chrf

from llmkit.eval.metrics.answers import Answer, bleu, chrf, contains, exact_match, length, mean, rouge
from llmkit.eval.metrics.base import Bootstrap
from llmkit.eval.metrics.classes import Labelled, accuracy, macro_f1, matthews, micro_f1
from llmkit.eval.metrics.language import bits_per_byte, loss, perplexity, token_accuracy

TEXT = "the a cat dog sat stood on under mat table , . quick brown fox jumps over lazy Grüße 北京 don't 3.14"
WORDS = TEXT.split()


def sentences(seed: int, count: int) -> list[Answer]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        reference = rng.choices(WORDS, k=rng.randint(1, 25))
        output = [rng.choice(WORDS) if rng.random() < 0.3 else word for word in reference if rng.random() < 0.9]
        made.append(Answer(" ".join(output), " ".join(reference)))
    return [*made, Answer("", "an empty answer"), Answer("the same", "the same")]


@pytest.mark.parametrize("seed", range(3))
def test_bleu_and_chrf_equal_sacrebleu_on_the_corpus(seed: int) -> None:
    pairs = sentences(seed, 40)
    outputs, references = [pair.output for pair in pairs], [[pair.reference for pair in pairs]]
    assert bleu().value(pairs) == pytest.approx(corpus_bleu(outputs, references).score, abs=1e-12)
    assert chrf().value(pairs) == pytest.approx(corpus_chrf(outputs, references).score, abs=1e-12)


def test_a_resample_has_the_score_of_the_resampled_corpus() -> None:
    pairs = sentences(7, 30)
    bootstrap = Bootstrap(resamples=5, seed=3)
    drawn = np.random.default_rng(3).integers(0, len(pairs), size=(5, len(pairs)))
    for metric, reference in ((bleu(), corpus_bleu), (chrf(), corpus_chrf)):
        found = bootstrap.distribution(metric.statistics(pairs), metric.combine)
        for row, value in zip(drawn, found, strict=True):
            corpus = [pairs[place] for place in row]
            expected = reference([pair.output for pair in corpus], [[pair.reference for pair in corpus]]).score
            assert value == pytest.approx(expected, abs=1e-9)


def test_bleu_of_nothing_in_common_is_zero_and_of_equal_texts_a_hundred() -> None:
    assert bleu().value([Answer("a b c d e", "v w x y z")]) == 0
    assert bleu().value([Answer("a b c d e", "a b c d e")]) == pytest.approx(100)


def test_signatures_are_those_of_sacrebleu() -> None:
    assert bleu().signature.startswith("sacrebleu nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.")
    assert chrf().signature.startswith("sacrebleu nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.")


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_equals_the_aggregate_of_rouge_score(kind: str) -> None:
    pairs = sentences(11, 25)
    scorer, aggregator = RougeScorer([kind]), BootstrapAggregator(confidence_interval=0.95, n_samples=500)
    scores = [scorer.score(pair.reference, pair.output) for pair in pairs]
    for score in scores:
        aggregator.add_scores(score)
    assert rouge(kind).value(pairs) == pytest.approx(np.mean([score[kind].fmeasure for score in scores]), abs=1e-12)
    bounds = aggregator.aggregate()[kind]
    assert bounds.low.fmeasure <= rouge(kind).value(pairs) <= bounds.high.fmeasure


def test_rouge_by_hand() -> None:
    pair = [Answer("the cat sat", "the cat sat down today")]
    assert rouge("rouge1").value(pair) == pytest.approx(2 * 1.0 * 0.6 / 1.6)
    assert rouge("rouge2").value(pair) == pytest.approx(2 * 1.0 * 0.5 / 1.5)


@pytest.mark.parametrize(
    ("output", "reference", "equal", "inside"),
    [
        ("Paris", "Paris", 1, 1),
        (" Paris \n", "Paris", 1, 1),
        ("New\n York", "New York", 1, 1),
        ("cafe\u0301", "caf\u00e9", 1, 1),
        ("paris", "Paris", 0, 1),
        ("It is PARIS.", "Paris", 0, 1),
        ("Par", "Paris", 0, 0),
        ("", "Paris", 0, 0),
    ],
)
def test_matching(output: str, reference: str, equal: int, inside: int) -> None:
    assert exact_match().value([Answer(output, reference)]) == equal
    assert contains().value([Answer(output, reference)]) == inside


def test_length_counts_characters_and_has_no_better_direction() -> None:
    assert length().value([Answer("äöü", ""), Answer("x", "")]) == 2
    assert length().better is None


# The confusion matrix of 10 examples: rows true, columns predicted.
#      a b c
#   a  3 1 0
#   b  0 2 1
#   c  1 0 2
CONFUSION = [[3, 1, 0], [0, 2, 1], [1, 0, 2]]
PAIRS = [Labelled(true, said) for true in range(3) for said in range(3) for _ in range(CONFUSION[true][said])]


def test_metrics_of_a_confusion_matrix_by_hand() -> None:
    assert accuracy(3).value(PAIRS) == pytest.approx(7 / 10)
    # F1 = 2 TP / (true + predicted): a 6/8, b 4/6, c 4/6.
    assert macro_f1(3).value(PAIRS) == pytest.approx((6 / 8 + 4 / 6 + 4 / 6) / 3)
    assert micro_f1(3).value(PAIRS) == pytest.approx(7 / 10)
    # R_K: c = 7, s = 10, true (4, 3, 3), predicted (4, 3, 3).
    assert matthews(3).value(PAIRS) == pytest.approx((7 * 10 - 34) / (100 - 34))


def test_matthews_of_two_classes_is_the_phi_coefficient() -> None:
    tp, fn, fp, tn = 6, 2, 3, 9
    pairs = [Labelled(1, 1)] * tp + [Labelled(1, 0)] * fn + [Labelled(0, 1)] * fp + [Labelled(0, 0)] * tn
    phi = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert matthews(2).value(pairs) == pytest.approx(phi)
    indicators = np.asarray([[pair.true, pair.predicted] for pair in pairs])
    assert matthews(2).value(pairs) == pytest.approx(np.corrcoef(indicators.T)[0, 1])


def test_classes_that_do_not_occur_are_no_part_of_macro_f1() -> None:
    assert macro_f1(5).value([Labelled(0, 0), Labelled(1, 1)]) == 1
    assert matthews(5).value([Labelled(0, 0), Labelled(1, 0)]) == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_metrics_of_classes_against_loops(pairs: list[tuple[int, int]]) -> None:
    examples = [Labelled(*pair) for pair in pairs]
    f1 = []
    for label in range(4):
        true_positive = sum(pair == (label, label) for pair in pairs)
        false_positive = sum(said == label != true for true, said in pairs)
        false_negative = sum(true == label != said for true, said in pairs)
        if true_positive + false_positive + false_negative:
            f1.append(true_positive / (true_positive + (false_positive + false_negative) / 2))
    assert macro_f1(4).value(examples) == pytest.approx(sum(f1) / len(f1))
    # The definition of R_K as a correlation of indicator vectors.
    true, said = (np.eye(4)[[pair[side] for pair in pairs]] for side in (0, 1))
    true, said = true - true.mean(0), said - said.mean(0)
    spread = math.sqrt((true**2).sum() * (said**2).sum())
    expected = (true * said).sum() / spread if spread > 1e-12 else 0
    assert matthews(4).value(examples) == pytest.approx(expected, abs=1e-9)


def test_a_uniform_model_has_a_perplexity_of_its_vocabulary() -> None:
    vocabulary, tokens = 50, [7, 20, 1]
    scored = [{"nll": n * math.log(vocabulary), "tokens": n, "bytes": 4 * n, "hits": 0} for n in tokens]
    assert perplexity("").value(scored) == pytest.approx(vocabulary)
    assert loss("").value(scored) == pytest.approx(math.log(vocabulary))
    assert bits_per_byte("").value(scored) == pytest.approx(math.log2(vocabulary) / 4)
    assert token_accuracy("").value(scored) == 0


def test_ratios_are_of_sums_not_means_of_ratios() -> None:
    scored = [{"nll": 1.0, "tokens": 1, "bytes": 10, "hits": 1}, {"nll": 30.0, "tokens": 10, "bytes": 10, "hits": 0}]
    assert loss("").value(scored) == pytest.approx(31 / 11)
    assert bits_per_byte("").value(scored) == pytest.approx(31 / 20 / math.log(2))
    assert token_accuracy("").value(scored) == pytest.approx(1 / 11)


NUMBER = mean("mean", "mean", "higher", float)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(5, 2, 2000).tolist()
    found = Bootstrap(resamples=4000).estimate(NUMBER, values)
    half = 1.959964 * np.std(values) / math.sqrt(2000)
    assert found.value == pytest.approx(np.mean(values))
    assert found.low == pytest.approx(found.value - half, abs=0.05 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.05 * half)


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    samples = rng.normal(0, 1, (400, 60))
    bounds = [Bootstrap(resamples=300, confidence=0.9).estimate(NUMBER, sample.tolist()) for sample in samples]
    covered = sum(found.low <= 0 <= found.high for found in bounds if found.low is not None and found.high is not None)
    # 90% less the known shortfall of percentiles at n = 60, within three standard errors.
    assert covered / 400 == pytest.approx(0.89, abs=3 * math.sqrt(0.09 / 400))


def test_documents_are_resampled_not_tokens() -> None:
    # One document holds all tokens but one: the interval is wide however many tokens there are.
    scored = [{"nll": 9000.0, "tokens": 9000}, {"nll": 5.0, "tokens": 1}]
    found = Bootstrap().estimate(loss(""), scored)
    assert found.value == pytest.approx(9005 / 9001)
    assert (found.low, found.high) == (1.0, 5.0)


def test_resamples_depend_on_seed_and_number_of_examples_alone() -> None:
    one, other = [float(n) for n in range(50)], [float(n * n) for n in range(50)]
    again = Bootstrap(seed=4).estimate(NUMBER, one)
    assert Bootstrap(seed=4).estimate(NUMBER, one) == again
    assert Bootstrap(seed=5).estimate(NUMBER, one) != again
    # Equal draws for two models: the difference of resampled means is the resampled mean of the differences.
    draws = [Bootstrap(seed=4).distribution(NUMBER.statistics(values), NUMBER.combine) for values in (one, other)]
    differences = [b - a for a, b in zip(one, other, strict=True)]
    paired = Bootstrap(seed=4).distribution(NUMBER.statistics(differences), NUMBER.combine)
    np.testing.assert_allclose(draws[1] - draws[0], paired, atol=1e-9)


def test_blocks_do_not_change_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [float(n) for n in range(30)]
    whole = Bootstrap().estimate(NUMBER, values)
    monkeypatch.setattr("llmkit.eval.metrics.base._BLOCK", 70)
    assert Bootstrap().estimate(NUMBER, values) == whole


def test_one_example_has_no_interval_and_none_no_figure() -> None:
    found = Bootstrap().estimate(NUMBER, [2.0])
    assert (found.value, found.low, found.high, found.n) == (2.0, None, None, 1)
    with pytest.raises(ValueError, match="no examples"):
        Bootstrap().estimate(NUMBER, [])
    with pytest.raises(ValueError, match="nan"):
        Bootstrap().estimate(NUMBER, [1.0, math.nan])
