"""Lion: the sign of an interpolated momentum (Chen et al. 2023, "Symbolic discovery of optimization algorithms")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from llmkit.train.optimizers.update_rule import PLAIN, Keeping, UpdateRule


class Lion(UpdateRule):
    """For a weight w with gradient g: w <- (1 - lr decay) w - lr sign(b1 m + (1 - b1) g), then m <- b2 m + (1 - b2) g.

    It keeps half the state of AdamW; every value moves by the learning rate, so that a third to a tenth of AdamW's rate
    and as many times its weight decay are usual.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: b1 and b2.
        weight_decay: decoupled weight decay.
        keeping: how weights and state are kept.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        keeping: Keeping = PLAIN,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay}, keeping)

    def new_state(self, parameter: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The momentum."""
        return {"momentum": torch.zeros_like(parameter, dtype=dtype)}

    def update(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]]
    ) -> None:
        """One step."""
        averages = [state["momentum"] for state in states]
        interpolated, kept = group["betas"]
        signs = torch._foreach_lerp(averages, gradients, 1 - interpolated)
        torch._foreach_sign_(signs)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, signs, alpha=-group["lr"])
        torch._foreach_lerp_(averages, gradients, 1 - kept)
