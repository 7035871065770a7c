"""Hiding tokens for a masked language model."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from llmkit.pretrain.config import MaskConfig
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

    Each ordinary token is chosen with the configured probability, independently of all others; chosen ones become the
    mask token, a random ordinary token, or stay. Special tokens are never chosen and never put in. What happens to a
    row depends on the seed, what it is drawn for, and its number in the batch alone.

    Args:
        config: probabilities.
        mask_id: id of the mask token.
        vocab_size: size of the vocabulary.
        special_ids: ids of all special tokens.
        seed: seed of the stage.
    """

    def __init__(
        self, config: MaskConfig, *, mask_id: int, vocab_size: int, special_ids: Collection[int], seed: int
    ) -> None:
        self._config = config
        self._mask_id = mask_id
        self._ordinary = torch.tensor([token for token in range(vocab_size) if token not in special_ids])
        self._is_special = torch.zeros(vocab_size, dtype=torch.bool)
        self._is_special[list(special_ids)] = True
        self._seed = seed

    def hide(self, tokens: Tensor, purpose: str, step: int) -> Masked:
        """Hide tokens of a whole batch.

        At least one token is chosen, where there is any that can be: a batch must have something to learn from.

        Args:
            tokens: int64 [B, L].
            purpose: what for; other words give other masks.
            step: number of the batch.
        """
        generator = torch.Generator().manual_seed(derive_seed(self._seed, purpose, step))
        draws = torch.rand(tokens.shape, generator=generator)
        draws[self._is_special[tokens]] = 1.0
        chosen = draws < self._config.probability
        if not chosen.any() and draws.min() < 1:
            chosen = draws == draws.min()
        fates = torch.rand(tokens.shape, generator=generator)
        strangers = self._ordinary[torch.randint(len(self._ordinary), tokens.shape, generator=generator)]
        replaced = chosen & (fates < self._config.replace)
        random = chosen & ~replaced & (fates < self._config.replace + self._config.random)
        hidden = torch.where(replaced, self._mask_id, torch.where(random, strangers, tokens))
        return Masked(hidden, chosen)
