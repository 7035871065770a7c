"""Schedule-Free AdamW: an average in place of a decay (Defazio et al. 2024, "The road less scheduled")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from llmkit.train.optimizers.rounding import local
from llmkit.train.optimizers.update_rule import PLAIN, Keeping, UpdateRule


class ScheduleFree(UpdateRule):
    """AdamW on a fast point z, with gradients taken at y between z and its average x, which is the model.

    With y = (1 - b1) z + b1 x and the gradient g at y (algorithm 1 of the paper):
    v <- b2 v + (1 - b2) g^2; r = lr sqrt(1 - b2^t); z <- z - r g / (sqrt(v) + eps) - r decay y;
    c = r^2 / (sum of r^2 so far); x <- (1 - c) x + c z.
    Between steps parameters hold y and the state z; `evaluation_point` is x.

    Args:
        params: parameters or groups of them.
        lr: learning rate; to be constant after its warm-up.
        betas: b1, from 0 exclusive, and b2.
        eps: term against division by zero.
        weight_decay: decoupled weight decay, at y.
        keeping: how weights and state are kept.
    """

    wide = True

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
        """The count of steps, the sum of squared rates, the fast point and the second moment."""
        wide = torch.promote_types(parameter.dtype, torch.float32)
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "rates": torch.zeros((), dtype=torch.float64, device=parameter.device),
            "fast": parameter.detach().clone().to(wide),
            "exp_avg_sq": torch.zeros_like(parameter, dtype=dtype),
        }

    def update(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]]
    ) -> None:
        """One step."""
        first, second = group["betas"]
        rates, shares = _rates([state["step"] for state in states], [state["rates"] for state in states], group)
        fast, squares = [state["fast"] for state in states], [state["exp_avg_sq"] for state in states]
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        directions = torch._foreach_div(gradients, roots)
        torch._foreach_add_(directions, weights, alpha=group["weight_decay"])
        toward = torch._foreach_sub(fast, weights)
        torch._foreach_mul_(toward, shares)
        torch._foreach_add_(weights, toward)
        torch._foreach_mul_(directions, rates)
        torch._foreach_sub_(fast, directions)
        torch._foreach_mul_(directions, [1 - first * (1 - share) for share in shares])
        torch._foreach_sub_(weights, directions)

    def evaluation_point(self, parameter: Tensor) -> Tensor | None:
        """x, from y and z."""
        state = self.state[parameter]
        if not state:
            return None
        first = next(group["betas"][0] for group in self.param_groups if any(p is parameter for p in group["params"]))
        point = parameter.detach().clone().to(state["fast"].dtype)
        values = local(point)
        values.lerp_(local(state["fast"]).to(values.device), 1 - 1 / first)
        return point


def _rates(steps: list[Tensor], sums: list[Tensor], group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Count a step: r and c of each parameter, as float64 scalars."""
    torch._foreach_add_(steps, 1)
    counts = torch.stack(steps).double()
    rates = group["lr"] * torch.sqrt(1 - group["betas"][1] ** counts)
    torch._foreach_add_(sums, list(rates.square().unbind()))
    # Where all rates so far were zero, so is the share.
    shares = rates.square() / torch.stack(sums).clamp(min=1e-300)
    return list(rates.unbind()), list(shares.unbind())
