"""Losses on pairs of a chosen and a rejected answer: Bradley-Terry reward models, direct preference optimization."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from llmkit.rlhf.variants import PreferenceLoss


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, centering: float = 0.0
) -> Tensor:
    """Negative log-likelihood of the preferences under the Bradley-Terry model.

    `-log sigmoid(r_chosen - r_rejected - margin)` (Ouyang et al. 2022, "Training language models to follow
    instructions", equation 1; the margin as in Touvron et al. 2023, "Llama 2", equation 2), plus
    `centering * (r_chosen + r_rejected)^2`, which fixes the zero that the difference leaves open (Eisenstein et al.
    2023, "Helping or Herding?", section 4).

    Args:
        chosen, rejected: [pairs] scores.
        margin: [pairs] or a number; how far apart the scores should at least be.
        centering: weight of the centering term.

    Returns:
        [pairs] losses.
    """
    losses = -F.logsigmoid(chosen - rejected - margin)
    return losses + centering * (chosen + rejected).square() if centering else losses


class PreferenceTerms(NamedTuple):
    """Result of `dpo_loss`, each [pairs]; the rewards are implicit ones, detached: `beta * log(policy / reference)`."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_ref_logprobs: Tensor,
    rejected_ref_logprobs: Tensor,
    *,
    beta: float,
    loss: PreferenceLoss = "sigmoid",
    label_smoothing: float = 0.0,
) -> PreferenceTerms:
    """Direct preference optimization on log-probabilities summed over each answer's tokens.

    With `h = log(pi/ref)(chosen) - log(pi/ref)(rejected)`:

    - sigmoid: `-(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h)` (Rafailov et al. 2023, "Direct Preference
      Optimization", equation 7; the smoothing `s` is the share of flipped labels, Mitchell 2023, "cDPO", equation 3)
    - ipo: `(h - 1 / (2 beta))^2` (Azar et al. 2023, "A General Theoretical Paradigm", equation 17)
    - hinge: `max(0, 1 - beta h)` (Zhao et al. 2023, "SLiC-HF", in the normalized form of Liu et al. 2023, "RSO")

    Args:
        chosen_logprobs, rejected_logprobs: [pairs] under the policy.
        chosen_ref_logprobs, rejected_ref_logprobs: [pairs] under the frozen reference.
        beta: strength of the pull towards the reference, above 0.
        loss: which of the three.
        label_smoothing: `s` in [0, 0.5), of the sigmoid loss only.
    """
    chosen_ratios = chosen_logprobs - chosen_ref_logprobs
    rejected_ratios = rejected_logprobs - rejected_ref_logprobs
    gap = chosen_ratios - rejected_ratios
    if loss == "sigmoid":
        losses = -(1 - label_smoothing) * F.logsigmoid(beta * gap) - label_smoothing * F.logsigmoid(-beta * gap)
    elif loss == "ipo":
        losses = (gap - 1 / (2 * beta)).square()
    else:
        losses = F.relu(1 - beta * gap)
    return PreferenceTerms(losses, beta * chosen_ratios.detach(), beta * rejected_ratios.detach())
