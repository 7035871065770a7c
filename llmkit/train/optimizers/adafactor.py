"""Adafactor: a second moment kept as one number for each row and column (Shazeer and Stern 2018)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from llmkit.train.optimizers.rounding import local
from llmkit.train.optimizers.update_rule import PLAIN, Keeping, UpdateRule

TINY = 1e-30
"""Added to squared gradients (the paper's first epsilon)."""


class Adafactor(UpdateRule):
    """Gradients over the root of a factored second moment, clipped to a root mean square of 1.

    For a matrix with gradient G at update t, and b = 1 - t^-0.8: R <- b R + (1 - b) mean over columns of G^2,
    C <- b C + (1 - b) mean over rows of G^2, U = G / sqrt(R C / mean(R)), U <- U / max(1, rms(U)), and
    W <- (1 - lr decay) W - lr U. Vectors keep their whole second moment. There is no momentum, and the learning rate is
    absolute: the paper's scaling by the size of the weights is left to the schedule and to groups.

    Args:
        params: parameters or groups of them; of [..., r, c] each matrix has factors of its own.
        lr: learning rate.
        weight_decay: decoupled weight decay.
        keeping: how weights and state are kept.
    """

    whole = True

    def __init__(
        self, params: Iterable[Any], *, lr: float, weight_decay: float = 0.0, keeping: Keeping = PLAIN
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay}, keeping)

    def new_state(self, parameter: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The count of steps, and the second moment: of rows and columns, whole on every rank, or of all values."""
        device, wide = local(parameter).device, torch.promote_types(parameter.dtype, torch.float32)
        state = {"step": torch.zeros((), dtype=torch.float32, device=device)}
        if parameter.dim() < 2:
            return {**state, "exp_avg_sq": torch.zeros_like(parameter, dtype=dtype)}
        *stack, rows, columns = parameter.shape
        return {
            **state,
            "rows": torch.zeros(*stack, rows, dtype=wide, device=device),
            "columns": torch.zeros(*stack, columns, dtype=wide, device=device),
        }

    def update(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]]
    ) -> None:
        """One step."""
        for weight, gradient, state in zip(weights, gradients, states, strict=True):
            state["step"] += 1
            rate = state["step"].to(gradient.dtype) ** -0.8
            direction = _factored(gradient, state, rate) if gradient.dim() >= 2 else _plain(gradient, state, rate)
            size = _whole(torch.linalg.vector_norm(direction)) / direction.numel() ** 0.5
            direction = local(direction) / size.clamp(min=1.0)
            target = local(weight)
            target.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])


def _factored(gradient: Tensor, state: dict[str, Tensor], rate: Tensor) -> Tensor:
    squares = gradient.square() + TINY
    rows, columns = state["rows"], state["columns"]
    rows.lerp_(_whole(squares.mean(dim=-1)), rate)
    columns.lerp_(_whole(squares.mean(dim=-2)), rate)
    of_rows = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt().unsqueeze(-1)
    return gradient * _alongside(of_rows, gradient) * _alongside(columns.rsqrt().unsqueeze(-2), gradient)


def _plain(gradient: Tensor, state: dict[str, Tensor], rate: Tensor) -> Tensor:
    moment = state["exp_avg_sq"]
    local(moment).lerp_(local(gradient).square() + TINY, rate)
    return gradient * moment.rsqrt()


def _whole(tensor: Tensor) -> Tensor:
    """A distributed tensor's values, on every rank."""
    if isinstance(tensor, DTensor):
        full: Tensor = tensor.full_tensor()
        return full
    return tensor


def _alongside(tensor: Tensor, distributed: Tensor) -> Tensor:
    """A tensor that every rank has, as one that can be multiplied with a distributed one."""
    if not isinstance(distributed, DTensor):
        return tensor
    mesh = distributed.device_mesh
    return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
