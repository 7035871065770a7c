"""From rewards to advantages: per-token rewards with a divergence penalty, GAE, and group-relative advantages.

Every tensor of a token is [rows, tokens]; `mask` is true where the token was written by the policy, one unbroken run in
each row. Results are zero outside the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmkit.rlhf.variants import AdvantageScale


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """Rewards of single tokens: `-coefficient * kl` on each, and the row's score on its last one.

    Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", equation 2; Ouyang et al. 2022.

    Args:
        scores: [rows] reward of the whole answer.
        kl: [rows, tokens] estimate of the divergence from the reference (k1 in the papers).
        mask: [rows, tokens].
        kl_coefficient: weight of the divergence.
    """
    follows = torch.nn.functional.pad(mask[:, 1:], (0, 1))
    last = mask & ~follows
    zero = torch.zeros_like(kl)
    return torch.where(mask, -kl_coefficient * kl, zero) + torch.where(last, scores[:, None].to(kl.dtype), zero)


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, trace: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation, the state after the last token being worth nothing.

    `A_t = sum_k (discount * trace)^k * delta_{t+k}`, `delta_t = r_t + discount * V_{t+1} - V_t` (Schulman et al. 2015,
    "High-Dimensional Continuous Control Using Generalized Advantage Estimation", equation 16).

    Args:
        rewards, values: [rows, tokens]; the value of the state in which the token is chosen.
        mask: [rows, tokens].
        discount: gamma. trace: lambda.

    Returns:
        advantages and returns (advantage + value), both [rows, tokens].
    """
    weights = mask.to(values.dtype)
    values = values * weights
    advantages = torch.zeros_like(values)
    following_value = torch.zeros_like(values[:, 0])
    following_advantage = torch.zeros_like(values[:, 0])
    for position in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, position] + discount * following_value - values[:, position]
        following_advantage = (delta + discount * trace * following_advantage) * weights[:, position]
        following_value = values[:, position]
        advantages[:, position] = following_advantage
    return advantages, advantages + values


def group_advantages(rewards: Tensor, scale: AdvantageScale, epsilon: float = 1e-4) -> Tensor:
    """Advantages of answers relative to the others to the same prompt.

    "std": `(r - mean) / (std + epsilon)` (Shao et al. 2024, "DeepSeekMath", section 4.1.2; sample deviation);
    "none": `r - mean`, which does not favour prompts whose answers nearly agree (Liu et al. 2025, "Understanding
    R1-Zero-Like Training", Dr. GRPO).

    Args:
        rewards: [prompts, answers], at least two answers.

    Returns:
        [prompts, answers].
    """
    centered = rewards - rewards.mean(-1, keepdim=True)
    return centered / (rewards.std(-1, keepdim=True) + epsilon) if scale == "std" else centered


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask: a scalar; zero where the mask is empty."""
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Values shifted and scaled to mean 0 and (population) variance 1 over the mask; zero outside it."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask)
    return (values - mean) * torch.rsqrt(variance + epsilon) * mask.to(values.dtype)
