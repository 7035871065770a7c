"""One model from several: the mean of their weights, such as those of a run's last checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from llmkit.errors import ArtifactError
from llmkit.model.transformer import Transformer


@torch.no_grad()
def average_weights(model: Transformer, others: Sequence[str], load: Callable[[str], Transformer]) -> None:
    """Set a model's weights to the mean of its own and of others', summed in float32 at least; one other at a time.

    Args:
        model: changed in place; it keeps its dtype.
        others: where the other models are.
        load: opens one of them.

    Raises:
        ArtifactError: another one has another architecture.
    """
    parameters = dict(model.named_parameters())
    sums = {
        name: parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
        for name, parameter in parameters.items()
    }
    for source in others:
        other = load(source)
        if other.config != model.config:
            raise ArtifactError(
                "this is a model of another architecture, and weights cannot be averaged with it.",
                where=source,
                hint="Average checkpoints of one run, or runs from the same start.",
            )
        for name, parameter in other.named_parameters():
            sums[name] += parameter
    for name, parameter in parameters.items():
        parameter.copy_(sums[name] / (len(others) + 1))
