"""What a model is evaluated and saved with, where that is an average of its weights over training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from llmkit.train.optimizers.update_rule import UpdateRule


@contextmanager
def evaluation_weights(optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Within this context parameters hold what they are evaluated and saved with; then again, to the bit, what was.

    That differs where an average of the weights is kept (`average`), and under Schedule-Free.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for optimizer in optimizers:
                for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                    point = optimizer.evaluation_point(parameter) if isinstance(optimizer, UpdateRule) else None
                    if point is not None:
                        kept.append((parameter, parameter.detach().clone()))
                        parameter.copy_(point)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)


def with_evaluation_weights(save: Callable[[Path], None], optimizers: Sequence[Optimizer]) -> Callable[[Path], None]:
    """Save the model as it is to be used."""

    def write(path: Path) -> None:
        with evaluation_weights(optimizers):
            save(path)

    return write
