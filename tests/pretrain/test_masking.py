from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llmkit.pretrain.config import MaskConfig
from llmkit.pretrain.masking import Masking

VOCABULARY, MASK, SPECIALS = 50, 4, (0, 1, 2, 3, 4)


def masking(seed: int = 3, **settings: float) -> Masking:
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
