"""Lion: the sign of an interpolated momentum (Chen et al. 2023, "Symbolic discovery of optimization algorithms")."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """For a weight w with gradient g: w <- (1 - lr decay) w - lr sign(b1 m + (1 - b1) g), then m <- b2 m + (1 - b2) g.

    It keeps half the state of AdamW; every value moves by the learning rate, so that a third to a tenth of AdamW's rate
    and as many times its weight decay are usual.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: b1 and b2.
        weight_decay: decoupled weight decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            members = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not members:
                continue
            weights: list[Tensor] = list(members)
            gradients = [parameter.grad for parameter in members]
            averages = [self._momentum(parameter) for parameter in members]
            interpolated, kept = group["betas"]
            signs = torch._foreach_lerp(averages, gradients, 1 - interpolated)
            torch._foreach_sign_(signs)
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, signs, alpha=-group["lr"])
            torch._foreach_lerp_(averages, gradients, 1 - kept)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        average: Tensor = state["momentum"]
        return average
