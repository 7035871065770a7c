"""Log-probabilities and entropies of chosen tokens, from logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _SelectedLogprobs(torch.autograd.Function):
    """`log_softmax(logits)[target]` that keeps nothing of the vocabulary's size but the logits, and makes one such
    buffer in the backward pass, where the composed operations make three."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        return logits.gather(-1, targets[..., None]).squeeze(-1) - torch.logsumexp(logits, dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        grad = grads[0][..., None]
        through = torch.softmax(logits, dim=-1).mul_(-grad)
        return through.scatter_add_(-1, targets[..., None], grad), None


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each target under the softmax of `logits / temperature`, in float32 at least.

    Args:
        logits: [..., vocabulary].
        targets: [...] token ids.
        temperature: of the distribution that the tokens were sampled from.

    Returns:
        [...] log-probabilities (natural logarithm), differentiable once with respect to the logits.
    """
    scaled = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    scaled = scaled if temperature == 1.0 else scaled / temperature
    result: Tensor = _SelectedLogprobs.apply(scaled, targets)
    return result


def token_entropies(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy (nats) of the softmax of `logits / temperature`: [..., vocabulary] -> [...]."""
    scaled = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    logprobs = torch.log_softmax(scaled / temperature, dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)
