"""AdamW (Loshchilov and Hutter 2019), in torch's fused form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from llmkit.train.optimizers.update_rule import PLAIN, Keeping, UpdateRule


class AdamW(UpdateRule):
    """Adam with decoupled weight decay.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay rates of the first and second moment.
        eps: term against division by zero.
        weight_decay: decoupled weight decay.
        keeping: how weights and state are kept.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        keeping: Keeping = PLAIN,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, keeping)

    def new_state(self, parameter: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The count of steps and both moments."""
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, dtype=dtype),
            "exp_avg_sq": torch.zeros_like(parameter, dtype=dtype),
        }

    def update(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]]
    ) -> None:
        """One step."""
        adamw(
            weights,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
