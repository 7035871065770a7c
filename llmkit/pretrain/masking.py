"""Hiding tokens for a masked language model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llmkit.pretrain.config import MaskConfig, SpanConfig
from llmkit.train.ramp import value_at
from llmkit.train.seeding import derive_seed


class Masked(NamedTuple):
    """Sequences with hidden tokens.

    Args:
        input_ids: int64 [B, L], what the model sees.
        chosen: bool [B, L], the positions whose token is to be found.
    """

    input_ids: Tensor
    chosen: Tensor


class Masking:
    """Hides tokens as in BERT (Devlin et al. 2018, section 3.1).

    Each ordinary token is chosen with the configured probability, independently of all others, or together with its
    word, or in spans (`choose_spans`). Chosen ones become the mask token, a random ordinary token, or stay; a span is
    replaced, or not, as a whole. Special tokens are never chosen and never put in. What happens to a row depends on the
    seed, what it is drawn for, and its number in the batch alone.

    Args:
        config: probabilities.
        mask_id: id of the mask token.
        vocab_size: size of the vocabulary.
        special_ids: ids of all special tokens.
        seed: seed of the stage.
        word_starts: for each id whether it begins a word, where words are hidden as a whole.
    """

    def __init__(
        self,
        config: MaskConfig,
        *,
        mask_id: int,
        vocab_size: int,
        special_ids: Collection[int],
        seed: int,
        word_starts: Sequence[bool] | None = None,
    ) -> None:
        self._config = config
        self._mask_id = mask_id
        self._ordinary = torch.tensor([token for token in range(vocab_size) if token not in special_ids])
        self._is_special = torch.zeros(vocab_size, dtype=torch.bool)
        self._is_special[list(special_ids)] = True
        self._seed = seed
        self._word_starts = torch.tensor(word_starts) if config.whole_words else None

    def hide(self, tokens: Tensor, purpose: str, step: int, progress: float = 1.0) -> Masked:
        """Hide tokens of a whole batch.

        At least one token is chosen, where there is any that can be: a batch must have something to learn from.

        Args:
            tokens: int64 [B, L].
            purpose: what for; other words give other masks.
            step: number of the batch.
            progress: part of the training that is done, from which the probability follows.
        """
        generator = torch.Generator().manual_seed(derive_seed(self._seed, purpose, step))
        probability = value_at(self._config.probability, progress)
        special = self._is_special[tokens]
        draws = torch.rand(tokens.shape, generator=generator)
        fates = torch.rand(tokens.shape, generator=generator)
        strangers = self._ordinary[torch.randint(len(self._ordinary), tokens.shape, generator=generator)]
        units = None if self._word_starts is None else _numbered(self._word_starts[tokens])
        if self._config.spans is not None:
            spans = choose_spans(tokens.shape, probability, self._config.spans, generator)
            if units is not None:
                spans = spans.gather(1, units)
            chosen = (spans >= 0) & ~special
            fates = fates.gather(1, spans.clamp(min=0))
        else:
            # A word is chosen by the draw of its number.
            chosen = ((draws if units is None else draws.gather(1, units)) < probability) & ~special
        draws[special] = 1.0
        if not chosen.any() and draws.min() < 1:
            chosen = draws == draws.min()
        replaced = chosen & (fates < self._config.replace)
        random = chosen & ~replaced & (fates < self._config.replace + self._config.random)
        hidden = torch.where(replaced, self._mask_id, torch.where(random, strangers, tokens))
        return Masked(hidden, chosen)


def _numbered(starts_BL: Tensor) -> Tensor:
    """The number of each token's unit in its row, from where units begin; a row's first token begins one."""
    starts_BL[:, 0] = True
    return starts_BL.cumsum(1) - 1


def choose_spans(shape: torch.Size, probability: float, config: SpanConfig, generator: torch.Generator) -> Tensor:
    """Spans of units (tokens or words) whose lengths are geometric and at most `longest` (Joshi et al. 2020).

    Each unit lies in a span with the given probability, wherever it stands: a row is cut out of an endless one, in
    which behind each unit outside of spans, and behind each span, a span begins with the same chance.

    Returns:
        int64 [B, L], the number of the span that a unit lies in, or -1.
    """
    rows, length = shape
    lengths = torch.arange(1, config.longest + 1, dtype=torch.float64)
    weights = config.stop * (1 - config.stop) ** (lengths - 1)
    weights /= weights.sum()
    mean = float((weights * lengths).sum())
    # In the endless row a span of `mean` units follows on (1 - begin) / begin units outside of spans.
    begin = probability / (probability + mean * (1 - probability))
    drawn = 1 + torch.multinomial(weights, rows * length, replacement=True, generator=generator).view(rows, length)
    gaps = torch.empty(rows, length, dtype=torch.float64).geometric_(begin, generator=generator).long() - 1
    # The row's first unit lies in a span with the same probability; how much of it is left is evenly spread.
    inside = torch.rand(rows, generator=generator, dtype=torch.float64) < probability
    left = weights.flip(0).cumsum(0).flip(0)
    rest = 1 + torch.multinomial(left, rows, replacement=True, generator=generator)
    drawn[:, 0] = torch.where(inside, rest, drawn[:, 0])
    gaps[:, 0] = torch.where(inside, 0, gaps[:, 0] + 1)
    ends = (gaps + drawn).cumsum(1)
    places = torch.arange(length).expand(rows, length).contiguous()
    number = torch.searchsorted(ends, places, right=True).clamp(max=length - 1)
    return torch.where(places >= (ends - drawn).gather(1, number), number, -1)
