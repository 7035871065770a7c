"""Which checkpoints are kept: decided from what their manifests say, and so the same after any restart."""

from __future__ import annotations

from collections.abc import Mapping

from llmkit.train.checkpoints.config import BestConfig, CheckpointsConfig


def best_step(measures: Mapping[int, float | None], best: BestConfig) -> int | None:
    """The step whose measure is the best, the first of equal ones; None where nothing was measured.

    Args:
        measures: by step; None for a checkpoint that was not measured.
        best: what is better.
    """
    sign = 1 if best.mode == "min" else -1
    known = [(sign * measure, step) for step, measure in measures.items() if measure is not None]
    return min(known)[1] if known else None


def kept_steps(measures: Mapping[int, float | None], newest: int, settings: CheckpointsConfig, reach: int) -> set[int]:
    """The steps whose checkpoints are kept.

    Args:
        measures: by step of every whole checkpoint.
        newest: the step just saved. Later ones belong to a course that training has left, by going back or because they
            were damaged.
        settings: of checkpoints.
        reach: steps back from the newest within which none may be the one to go back to; 0 where nothing goes back.
    """
    current = {step: measure for step, measure in measures.items() if step <= newest}
    kept = set(sorted(current)[-settings.keep_last :])
    if settings.keep_every is not None:
        kept |= {step for step in current if step and step % settings.keep_every == 0}
    if settings.keep_best is not None:
        kept |= {step for step in (best_step(current, settings.keep_best),) if step is not None}
    if reach and current:
        # The newest that is old enough to go back to stays, however many came after it.
        kept.add(max((step for step in current if step <= newest - reach), default=min(current)))
    return kept
