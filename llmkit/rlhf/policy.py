"""The objectives of GRPO and PPO on parts of a rollout, and the value head of PPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmkit.model.transformer import Transformer
from llmkit.rlhf.config import GRPOConfig, PPOConfig
from llmkit.rlhf.forward import TokenTerms, answer_terms, scatter
from llmkit.rlhf.losses.policy import PolicyTerms, aggregate, clipped_policy_loss, clipped_value_loss, kl_estimate
from llmkit.rlhf.rollout import Rollout
from llmkit.train.contract import LossOutput, Number

Metrics = dict[str, tuple[Number, Number]]


class ActorCritic(nn.Module):
    """A language model and a value head on its hidden states, which begins at zero everywhere."""

    def __init__(self, policy: Transformer) -> None:
        super().__init__()
        self.policy = policy
        self.value_head = nn.Linear(policy.config.width, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def values(self, hidden: Tensor) -> Tensor:
        """Value of the states from which tokens are predicted, in fp32: [N, W] -> [N]."""
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.value_head(hidden.float()).squeeze(-1)
        return values


def policy_of(model: nn.Module) -> Transformer:
    """The language model that writes the answers."""
    policy = model.policy if isinstance(model, ActorCritic) else model
    assert isinstance(policy, Transformer)
    return policy


@dataclass(frozen=True)
class GRPOObjective:
    """Clipped policy gradient with group-relative advantages, and the divergence from the starting model (k3).

    Shao et al. 2024, "DeepSeekMath", equation 3. Like DPO's and PPO's objective it keeps the model in evaluation mode:
    under dropout the probability ratio of an unchanged policy would not be one.

    Args:
        settings: of the algorithm.
        temperature: of the policy.
        names: of the parts of the reward, for the metrics.
    """

    settings: GRPOConfig
    temperature: float
    names: Sequence[str]

    def loss(self, model: nn.Module, batch: Rollout) -> LossOutput:
        """Sum over tokens or answers, as the settings say."""
        model.eval()
        tokens, batch = batch.tokens, batch.to(next(model.parameters()).device)
        mask = batch.mask
        terms = answer_terms(policy_of(model), batch.input_ids, mask, self.temperature)
        policy = _policy_terms(terms, batch, self.settings)
        losses = policy.losses
        if batch.ref_logprobs is not None:
            kl = kl_estimate(terms.logprobs, batch.ref_logprobs, "k3")
            losses = losses + self.settings.kl_coefficient * kl
        total, weight = aggregate(losses * batch.counted[:, None], mask, self.settings.aggregation)
        metrics = {**_rollout_metrics(batch, mask, self.names), **_policy_metrics(terms, policy, batch, mask)}
        return LossOutput(total, weight, metrics, tokens)


@dataclass(frozen=True)
class PPOObjective:
    """Clipped policy gradient, clipped value loss and entropy bonus (Schulman et al. 2017, equation 9).

    Args:
        settings: of the algorithm.
        temperature: of the policy.
        names: of the parts of the reward, for the metrics.
    """

    settings: PPOConfig
    temperature: float
    names: Sequence[str]

    def loss(self, model: nn.Module, batch: Rollout) -> LossOutput:
        """Sum over tokens or answers, as the settings say."""
        assert isinstance(model, ActorCritic)
        model.eval()
        tokens, batch = batch.tokens, batch.to(next(model.parameters()).device)
        assert batch.values is not None
        assert batch.returns is not None
        mask, settings = batch.mask, self.settings
        bonus = settings.entropy_coefficient
        terms = answer_terms(policy_of(model), batch.input_ids, mask, self.temperature, entropy_gradient=bonus > 0)
        policy = _policy_terms(terms, batch, settings)
        values = scatter(model.values(terms.hidden), mask)
        value_losses = clipped_value_loss(values, batch.values, batch.returns, clip=settings.value_clip)
        losses = policy.losses + settings.value_coefficient * value_losses
        if bonus:
            losses = losses - bonus * terms.entropies
        total, weight = aggregate(losses * batch.counted[:, None], mask, settings.aggregation)
        count = mask.sum()
        metrics = {
            **_rollout_metrics(batch, mask, self.names),
            **_policy_metrics(terms, policy, batch, mask),
            "value_loss": ((value_losses.detach() * mask).sum(), count),
            "value": ((values.detach() * mask).sum(), count),
            "return": ((batch.returns * mask).sum(), count),
        }
        return LossOutput(total, weight, metrics, tokens)


def _policy_terms(terms: TokenTerms, batch: Rollout, settings: GRPOConfig | PPOConfig) -> PolicyTerms:
    old = terms.logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
    return clipped_policy_loss(
        terms.logprobs, old, batch.advantages, clip_low=settings.clip_low, clip_high=settings.clip_high
    )


def _policy_metrics(terms: TokenTerms, policy: PolicyTerms, batch: Rollout, mask: Tensor) -> Metrics:
    """By token: entropy, share of clipped ratios, and the divergence from starting model and rollout's policy."""
    logprobs, count = terms.logprobs.detach(), mask.sum()
    metrics: Metrics = {
        "entropy": (terms.entropies.detach().sum(), count),
        "clip_fraction": ((policy.clipped & mask).sum(), count),
    }
    for name, others in (("kl", batch.ref_logprobs), ("old_kl", batch.old_logprobs)):
        if others is not None:
            metrics[name] = (kl_estimate(logprobs, others, "k3").sum(), count)
    return metrics


def _rollout_metrics(batch: Rollout, mask: Tensor, names: Sequence[str]) -> Metrics:
    """By answer: reward and its parts, length in tokens, share of finished ones and of those without a signal."""
    count = float(len(batch))
    metrics: Metrics = {
        "reward": (batch.rewards.sum(), count),
        "completion_length": (mask.sum(), count),
        "finished": (batch.finished.sum(), count),
        "zero_advantage": (((batch.advantages == 0) | ~mask).all(-1).sum(), count),
    }
    for name, part in zip(names, batch.parts.unbind(1), strict=True):
        metrics[f"score_{name}"] = (part.nansum(), (~part.isnan()).sum())
    return metrics
