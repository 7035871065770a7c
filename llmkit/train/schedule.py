"""The learning rate of each step, in closed form."""

from __future__ import annotations

import math

from llmkit.train.config import TrainConfig


def rate_factor(
    step: int, *, name: str, steps: int, warmup_steps: int, decay_steps: int, final_fraction: float
) -> float:
    """Learning rate of a step as a fraction of its peak.

    Warm-up rises on a line and reaches 1 at step `warmup_steps - 1`. What follows ends in `final_fraction` at the last
    step: along half a cosine (Loshchilov and Hutter 2017), on a line, or, for `wsd` (Hu et al. 2024), flat until the
    last `decay_steps` steps and then on a line. `inverse-sqrt` falls as 1 / sqrt(step) from the end of the warm-up on
    (Vaswani et al. 2017). `constant` stays at 1.

    Args:
        step: the step, from 0 to `steps - 1`.
        name: "cosine", "wsd", "linear", "inverse-sqrt" or "constant".
        steps: steps of the whole run.
        warmup_steps: steps of the warm-up.
        decay_steps: steps of the decay of `wsd`.
        final_fraction: factor at the last step.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if name == "constant":
        return 1.0
    if name == "inverse-sqrt":
        return math.sqrt(max(1, warmup_steps) / (step + 1))
    length = decay_steps if name == "wsd" else steps - warmup_steps
    # The first step after the plateau is already below the peak, the last one is at the final fraction.
    progress = min(1.0, max(0.0, (step + 1 - (steps - length)) / max(1, length)))
    left = 0.5 * (1.0 + math.cos(math.pi * progress)) if name == "cosine" else 1.0 - progress
    return final_fraction + (1.0 - final_fraction) * left


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of a step (from 0) under a stage's settings."""
    factor = rate_factor(
        step,
        name=config.schedule.name,
        steps=config.steps,
        warmup_steps=config.warmup_steps,
        decay_steps=config.decay_steps,
        final_fraction=config.schedule.final_fraction,
    )
    return config.optimizer.peak(config.batch_size) * factor
