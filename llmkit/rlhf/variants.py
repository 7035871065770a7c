"""Names of the choices that settings and losses share. No torch."""

from __future__ import annotations

from typing import Literal

Algorithm = Literal["reward_model", "dpo", "ppo", "grpo"]
PreferenceLoss = Literal["sigmoid", "ipo", "hinge"]
Aggregation = Literal["token-mean", "sequence-mean"]
KLEstimator = Literal["k1", "k2", "k3"]
AdvantageScale = Literal["std", "none"]
