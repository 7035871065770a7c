from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from llmkit.pretrain.config import MaskConfig, SpanConfig
from llmkit.pretrain.masking import Masking, choose_spans
from llmkit.tokenizer.words import begins_word

VOCABULARY, MASK, SPECIALS = 50, 4, (0, 1, 2, 3, 4)


def masking(seed: int = 3, **settings: Any) -> Masking:
    return Masking(MaskConfig(**settings), mask_id=MASK, vocab_size=VOCABULARY, special_ids=SPECIALS, seed=seed)


def rows(count: int, length: int = 128) -> Tensor:
    return torch.randint(5, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(0))


def within(count: int, total: int, probability: float) -> bool:
    """Whether a count is within five standard deviations of a binomial's mean."""
    return abs(count - total * probability) < 5 * math.sqrt(total * probability * (1 - probability))


def test_shares_are_those_of_bert() -> None:
    tokens = rows(400)
    masked = masking().hide(tokens, "train", 0)
    chosen, total = int(masked.chosen.sum()), tokens.numel()
    assert within(chosen, total, 0.15)
    became_mask = (masked.input_ids == MASK) & masked.chosen
    changed = masked.chosen & (masked.input_ids != tokens) & ~became_mask
    kept = masked.chosen & (masked.input_ids == tokens)
    assert within(int(became_mask.sum()), chosen, 0.8)
    # A random token is the true one once in 45: that many seem to be kept.
    assert within(int(changed.sum()), chosen, 0.1 * 44 / 45)
    assert within(int(kept.sum()), chosen, 0.1 + 0.1 / 45)
    assert torch.equal(masked.input_ids[~masked.chosen], tokens[~masked.chosen])
    strangers = masked.input_ids[changed]
    assert strangers.min() >= 5
    counts = torch.bincount(strangers, minlength=VOCABULARY)[5:]
    assert all(within(int(count), len(strangers), 1 / 45) for count in counts)


def test_choices_of_different_tokens_are_independent() -> None:
    chosen = masking().hide(rows(400), "train", 0).chosen
    pairs = chosen[:, 1:] & chosen[:, :-1]
    assert within(int(pairs.sum()), pairs.numel(), 0.15**2)


def test_special_tokens_are_never_chosen() -> None:
    tokens = rows(100)
    tokens[:, ::3] = torch.randint(0, 5, tokens[:, ::3].shape, generator=torch.Generator().manual_seed(1))
    masked = masking(probability=0.9).hide(tokens, "train", 0)
    assert not masked.chosen[tokens < 5].any()
    assert torch.equal(masked.input_ids[tokens < 5], tokens[tokens < 5])


def test_masks_are_a_function_of_seed_purpose_and_step() -> None:
    tokens = rows(20)
    first = masking().hide(tokens, "train", 7)
    torch.randn(5)
    again = masking().hide(tokens, "train", 7)
    assert torch.equal(first.input_ids, again.input_ids)
    others = [
        masking().hide(tokens, "train", 8),
        masking().hide(tokens, "validation", 7),
        masking(seed=4).hide(tokens, "train", 7),
    ]
    assert all(not torch.equal(first.chosen, other.chosen) for other in others)


def test_masking_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    masking().hide(rows(2), "train", 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", range(20))
def test_there_is_always_something_to_learn(seed: int) -> None:
    tokens = torch.tensor([[2, 9, 3, 0]])
    assert masking(seed=seed, probability=0.001).hide(tokens, "train", 0).chosen.tolist() == [
        [False, True, False, False]
    ]
    nothing = masking(seed=seed).hide(torch.tensor([[2, 3]]), "train", 0)
    assert not nothing.chosen.any()


@pytest.mark.parametrize(("replace", "random", "share"), [(1.0, 0.0, 0.0), (0.0, 1.0, 44 / 45), (0.0, 0.0, 0.0)])
def test_shares_follow_the_settings(replace: float, random: float, share: float) -> None:
    tokens = rows(200)
    masked = masking(replace=replace, random=random).hide(tokens, "train", 0)
    hidden = masked.input_ids[masked.chosen]
    assert bool((hidden == MASK).all()) == (replace == 1.0)
    different = (hidden != tokens[masked.chosen]) & (hidden != MASK)
    assert within(int(different.sum()), len(hidden), share) or int(different.sum()) == 0 == share


def test_whole_words_are_hidden_whole_at_the_share_asked_for() -> None:
    # Every third id begins a word.
    starts = [token % 3 == 0 or token < 5 for token in range(VOCABULARY)]
    made = Masking(
        MaskConfig(probability=0.3, whole_words=True),
        mask_id=MASK, vocab_size=VOCABULARY, special_ids=SPECIALS, seed=1, word_starts=starts,
    )  # fmt: skip
    tokens = rows(400)
    chosen = made.hide(tokens, "train", 0).chosen
    begins = torch.tensor(starts)[tokens]
    begins[:, 0] = True
    assert torch.equal(chosen[:, 1:][~begins[:, 1:]], chosen[:, :-1][~begins[:, 1:]])
    words = int(begins.sum())
    assert within(int(chosen[begins].sum()), words, 0.3)
    # A word's tokens are chosen together: the variance of their number is that of the words' lengths.
    lengths = torch.bincount(begins.flatten().cumsum(0) - 1)
    spread = math.sqrt(0.3 * 0.7 * float(lengths.square().sum()))
    assert abs(int(chosen.sum()) - 0.3 * tokens.numel()) < 5 * spread


def test_spans_have_geometric_lengths_up_to_the_longest() -> None:
    config, rate = SpanConfig(), 0.2
    shape = torch.Size((3000, 200))
    spans = choose_spans(shape, rate, config, torch.Generator().manual_seed(0))
    weights = [0.2 * 0.8 ** (n - 1) for n in range(1, 11)]
    expected = [weight / sum(weights) for weight in weights]
    mean = sum(n * share for n, share in enumerate(expected, 1))
    assert mean == pytest.approx(3.8, abs=0.005)  # as Joshi et al. 2020 say
    # The same share everywhere in a row, its first place and its last included: a count of rows is binomial.
    inside = spans >= 0
    for place in (0, 1, 5, 100, 199):
        assert within(int(inside[:, place].sum()), 3000, rate), place
    # Spans that neither begin nor end with the row; the interior ones of the first half are a fair sample.
    counts = torch.zeros(12)
    for row in spans.tolist():
        for number in {n for n in row[1:100] if n >= 0} - {row[0]}:
            counts[row.count(number)] += 1
    total = int(counts.sum())
    assert counts[0] == counts[11] == 0
    for length, share in enumerate(expected, 1):
        assert within(int(counts[length]), total, share), length


def test_spans_of_words_are_whole_words_that_share_a_fate() -> None:
    starts = [token % 3 == 0 or token < 5 for token in range(VOCABULARY)]
    made = Masking(
        MaskConfig(probability=0.3, whole_words=True, spans=SpanConfig(longest=4), replace=0.5, random=0.0),
        mask_id=MASK, vocab_size=VOCABULARY, special_ids=SPECIALS, seed=1, word_starts=starts,
    )  # fmt: skip
    tokens = rows(600)
    masked = made.hide(tokens, "train", 0)
    begins = torch.tensor(starts)[tokens]
    joined = ~begins[:, 1:]
    assert torch.equal(masked.chosen[:, 1:][joined], masked.chosen[:, :-1][joined])
    became = masked.input_ids == MASK
    assert torch.equal(became[:, 1:][joined], became[:, :-1][joined])
    assert float(became.sum() / masked.chosen.sum()) == pytest.approx(0.5, abs=0.03)
    assert float(masked.chosen.float().mean()) == pytest.approx(0.3, abs=0.02)


def test_the_rate_follows_the_training() -> None:
    made, tokens = masking(probability=[[0, 0.3], [0.5, 0.2], [1, 0.1]]), rows(400)
    for progress, rate in ((0.0, 0.3), (0.25, 0.25), (0.75, 0.15), (1.0, 0.1)):
        chosen = made.hide(tokens, "train", 0, progress).chosen
        assert within(int(chosen.sum()), tokens.numel(), rate)
    assert MaskConfig(probability=[[0, 0.3], [0.5, 0.2], [1, 0.1]]).mean_probability == pytest.approx(0.2)


def test_words_of_a_byte_level_and_of_a_wordpiece_vocabulary() -> None:
    assert begins_word(["play", "##ing", "[CLS]", ","], "wordpiece") == [True, False, True, True]
    assert begins_word(["Ġplay", "ing", "Ċ", ",", "Ġ"], "bpe") == [True, False, True, False, True]
    assert begins_word(["▁play", "ing"], "unigram") == [True, False]
    assert begins_word(["play", "ing"], "bpe") is None
    assert begins_word(["play", "ing"], "wordlevel") == [True, True]
