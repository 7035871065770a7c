"""Losses of policy gradients: the clipped surrogate, clipped values, divergence from the reference, and their sums.

Every tensor of a token is [rows, tokens]; `mask` is true where the token was written by the policy. Values outside the
mask are arbitrary but finite.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llmkit.rlhf.variants import Aggregation, KLEstimator


class PolicyTerms(NamedTuple):
    """Result of `clipped_policy_loss`: losses, and whether the clip took the gradient away (detached booleans)."""

    losses: Tensor
    clipped: Tensor


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> PolicyTerms:
    """The clipped surrogate of PPO, also used by GRPO: `-min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)`.

    Schulman et al. 2017, "Proximal Policy Optimization", equation 7, with a lower and an upper bound of their own as in
    Yu et al. 2025, "DAPO", equation 10.

    Args:
        logprobs: log-probabilities under the policy being trained.
        old_logprobs: the same under the policy that wrote the tokens, at the same temperature.
        advantages: of each token, broadcastable to the log-probabilities.
        clip_low, clip_high: how far the ratio may fall below or rise above one.
    """
    ratios = torch.exp(logprobs - old_logprobs)
    free = ratios * advantages
    bounded = ratios.clamp(1 - clip_low, 1 + clip_high) * advantages
    return PolicyTerms(-torch.minimum(free, bounded), bounded < free)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """Half the squared error of the value head, the worse of the value and the value kept within `clip` of the old.

    `max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2` (Engstrom et al. 2020, "Implementation Matters in Deep
    Policy Gradients", section 3, from the reference implementation of PPO).
    """
    bounded = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (bounded - returns).square())


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate of KL(policy || reference) from a token sampled from the policy (Schulman 2020, "Approximating KL").

    With `r = ref / policy`: k1 = -log r (unbiased), k2 = (log r)^2 / 2 (biased, low variance), k3 = r - 1 - log r
    (unbiased, never negative; Shao et al. 2024, "DeepSeekMath", equation 4).
    """
    log_ratios = ref_logprobs - logprobs
    if estimator == "k1":
        return -log_ratios
    if estimator == "k2":
        return 0.5 * log_ratios.square()
    return torch.expm1(log_ratios) - log_ratios


def aggregate(losses: Tensor, mask: Tensor, how: Aggregation) -> tuple[Tensor, Tensor]:
    """Sum of a loss and the number that the sum over a whole batch is to be divided by.

    "token-mean" weighs every token alike (Yu et al. 2025, "DAPO", equation 8); "sequence-mean" first takes the mean
    over each row's tokens, so that long answers weigh no more than short ones (Shao et al. 2024, "DeepSeekMath",
    equation 3).

    Args:
        losses: [rows, tokens].
        mask: [rows, tokens]; a row without a token counts for nothing.
        how: the two above.

    Returns:
        scalars: sum (differentiable) and weight, in tokens or rows.
    """
    weights = mask.to(losses.dtype)
    if how == "token-mean":
        return (losses * weights).sum(), weights.sum()
    lengths = weights.sum(-1)
    return ((losses * weights).sum(-1) / lengths.clamp(min=1)).sum(), (lengths > 0).to(losses.dtype).sum()
