"""Log-probabilities of answers under a model, computed at the answers' tokens alone.

Shapes: B rows, L tokens, N tokens of all answers together, W width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llmkit.model.transformer import Transformer
from llmkit.rlhf.losses.logprobs import token_logprobs, token_logprobs_and_entropies


class TokenTerms(NamedTuple):
    """What a model says about the tokens of answers; zero at other tokens. Position p is about token p + 1.

    Args:
        logprobs: [B, L - 1].
        entropies: [B, L - 1] without gradient, unless asked for.
        hidden: [N, W], the body's output from which each token was predicted.
    """

    logprobs: Tensor
    entropies: Tensor
    hidden: Tensor


def answer_terms(
    model: Transformer, input_ids: Tensor, mask: Tensor, temperature: float, *, entropy_gradient: bool = False
) -> TokenTerms:
    """Log-probabilities and entropies of the tokens that a mask selects.

    The head is applied at the selected tokens only, so that logits take [N, V] and not [B, L, V]. Padding is on the
    right, where no token of an answer sees it, and needs no attention mask.

    Args:
        model: a causal language model.
        input_ids: int [B, L].
        mask: bool [B, L - 1], true where the next token is one of the answer.
        temperature: of the distribution.
        entropy_gradient: whether entropies are differentiable.
    """
    hidden = model.hidden(input_ids[:, :-1])[mask]
    logprobs, entropies = token_logprobs_and_entropies(
        model.head(hidden), input_ids[:, 1:][mask], temperature, entropy_gradient=entropy_gradient
    )
    return TokenTerms(scatter(logprobs, mask), scatter(entropies, mask), hidden)


def answer_logprobs(model: Transformer, input_ids: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """`answer_terms(...).logprobs` alone."""
    logits = model.head(model.hidden(input_ids[:, :-1])[mask])
    return scatter(token_logprobs(logits, input_ids[:, 1:][mask], temperature), mask)


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Values [N] put where a mask [B, T] is true, zero elsewhere; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).index_put((mask,), values)
