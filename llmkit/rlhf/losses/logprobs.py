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


def scaled_logits(logits: Tensor, temperature: float) -> Tensor:
    """`logits / temperature`, in float32 at least."""
    wide = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    return wide if temperature == 1.0 else wide / temperature


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each target under the softmax of `logits / temperature`, in float32 at least.

    Args:
        logits: [..., vocabulary].
        targets: [...] token ids.
        temperature: of the distribution that the tokens were sampled from.

    Returns:
        [...] log-probabilities (natural logarithm), differentiable once with respect to the logits.
    """
    result: Tensor = _SelectedLogprobs.apply(scaled_logits(logits, temperature), targets)
    return result


def token_logprobs_and_entropies(
    logits: Tensor, targets: Tensor, temperature: float = 1.0, *, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """`token_logprobs`, and the entropy (nats) of the distribution that each target stands in.

    The entropy is `log sum exp(x) - sum softmax(x) x`; its first term comes for free with the log-probability.

    Args:
        logits, targets, temperature: as for `token_logprobs`.
        entropy_gradient: whether entropies are differentiable; without, they take one pass over the logits.

    Returns:
        two tensors [...].
    """
    scaled = scaled_logits(logits, temperature)
    logprobs: Tensor = _SelectedLogprobs.apply(scaled, targets)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        normalizers = scaled.gather(-1, targets[..., None]).squeeze(-1) - logprobs
        probabilities = torch.softmax(scaled, dim=-1)
        weighted = probabilities * scaled if entropy_gradient else probabilities.mul_(scaled)
        return logprobs, normalizers - weighted.sum(-1)
