"""More tokens for a model: new rows of the embedding and of the head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmkit.errors import ModelError
from llmkit.model.adapters.attach import find_attached
from llmkit.model.heads import CausalLMHead, MaskedLMHead
from llmkit.model.transformer import Transformer

MULTIPLE = 64
"""Where a model's vocabulary was padded to a multiple of this, it is padded again."""


@torch.no_grad()
def grow_vocabulary(model: Transformer, size: int, *, known: int | None = None) -> None:
    """Give a model rows for new tokens, in place: each begins as the mean of the rows that were there.

    So the new tokens take as little as possible from the others: their logit is the mean of the others' (Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models"). Rows that the model has as padding are used
    first; where its size was a multiple of 64, it becomes the next one.

    Args:
        model: without an adapter.
        size: tokens that are needed, the tokenizer's.
        known: tokens that had a meaning so far, the old tokenizer's; by default all rows of the model.

    Raises:
        ModelError: the model has an adapter.
    """
    if find_attached(model) is not None:
        raise ModelError("the vocabulary of a model with an adapter cannot grow", hint="Let it grow first.")
    rows = model.config.vocab_size
    used = rows if known is None else min(known, rows)
    if size <= used:
        return
    wanted = max(size, rows)
    if rows % MULTIPLE == 0:
        wanted = -(-wanted // MULTIPLE) * MULTIPLE
    token = model.embeddings.token
    token.weight = _grown(token.weight, used, wanted)
    token.num_embeddings = wanted
    head = model.head
    if isinstance(head, CausalLMHead | MaskedLMHead):
        projection = head.projection
        if not model.config.tie_embeddings:
            projection.weight = _grown(projection.weight, used, wanted)
        if projection.bias is not None:
            projection.bias = _grown(projection.bias, used, wanted)
        projection.out_features = wanted
    model.config = model.config.model_copy(update={"vocab_size": wanted})
    model.tie_weights()


def _grown(old: Tensor, used: int, rows: int) -> nn.Parameter:
    """The first `used` rows, and their mean in every row up to `rows`."""
    mean: Tensor = old[:used].double().mean(0).to(old.dtype)
    new = mean.expand(rows, *old.shape[1:]).clone()
    new[:used] = old[:used]
    return nn.Parameter(new, requires_grad=old.requires_grad)


@torch.no_grad()
def untie(model: Transformer) -> None:
    """Give the head a projection of its own, in place, equal to the token embedding that it shared."""
    head = model.head
    if model.config.tie_embeddings and isinstance(head, CausalLMHead | MaskedLMHead):
        head.projection.weight = nn.Parameter(head.projection.weight.detach().clone())
        model.config = model.config.model_copy(update={"tie_embeddings": False})
