"""The learning rate of each step, in closed form."""

from __future__ import annotations

import math

from llmkit.train.config import TrainConfig


def rate_factor(done: int, *, name: str, total: int, warmup: int, decay: int, final_fraction: float) -> float:
    """Learning rate of a step as a fraction of its peak.

    Warm-up rises on a line and reaches 1 where it ends. What follows ends in `final_fraction` at the last step: along
    half a cosine (Loshchilov and Hutter 2017), on a line, or, for `wsd` (Hu et al. 2024), flat until the decay and then
    on a line. `inverse-sqrt` falls with the root of what is done from the end of the warm-up on (Vaswani et al. 2017).
    `constant` stays at 1.

    Args:
        done: how much is done after the step, in steps or in tokens, as the other numbers.
        name: "cosine", "wsd", "linear", "inverse-sqrt" or "constant".
        total: of the whole run.
        warmup: of the warm-up.
        decay: of the decay of `wsd`.
        final_fraction: factor at the last step.
    """
    if done <= warmup:
        return done / warmup
    if name == "constant":
        return 1.0
    if name == "inverse-sqrt":
        return math.sqrt(max(1, warmup) / done)
    length = decay if name == "wsd" else total - warmup
    # The first step after the plateau is already below the peak, the last one is at the final fraction.
    progress = min(1.0, max(0.0, (done - (total - length)) / max(1, length)))
    left = 0.5 * (1.0 + math.cos(math.pi * progress)) if name == "cosine" else 1.0 - progress
    return final_fraction + (1.0 - final_fraction) * left


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of a step (from 0) under a stage's settings."""
    schedule = config.schedule
    factor = rate_factor(**config.clock(step)._asdict(), name=schedule.name, final_fraction=schedule.final_fraction)
    return config.optimizer.peak(config.batch_size) * factor
