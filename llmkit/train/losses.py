"""Cross-entropy of language models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CPU_VALUES = 2**18
"""Logits worked on at once on a CPU: with the float32 copy they stay in its second-level cache."""
_GPU_VALUES = 2**28


class _CrossEntropySum(torch.autograd.Function):
    """Loss and gradient in one pass over the logits, a few rows at a time."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        gradient_NV = torch.empty_like(logits_NV) if ctx.needs_input_grad[0] else None
        values = _CPU_VALUES if logits_NV.device.type == "cpu" else _GPU_VALUES
        rows = max(1, values // logits_NV.shape[1])
        total = torch.zeros((), dtype=torch.float64, device=logits_NV.device)
        for begin in range(0, len(targets_N), rows):
            part = slice(begin, begin + rows)
            targets_n1 = targets_N[part, None]
            z_nV = logits_NV[part].to(torch.float32, copy=True)
            z_nV -= z_nV.amax(1, keepdim=True)
            wanted_n1 = z_nV.gather(1, targets_n1)
            weights_n1 = z_nV.exp_().sum(1, keepdim=True)
            total += (weights_n1.log() - wanted_n1).sum(dtype=torch.float64)
            if gradient_NV is not None:
                # softmax - one_hot, the derivative of each row's loss.
                z_nV /= weights_n1
                z_nV.scatter_(1, targets_n1, z_nV.gather(1, targets_n1) - 1)
                gradient_NV[part] = z_nV
        ctx.save_for_backward(gradient_NV)
        return total.to(torch.float32)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient_NV,) = ctx.saved_tensors
        if upstream.device.type == "cpu" and upstream.item() == 1.0:
            # The loop differentiates the sum itself: one pass over all logits less.
            return gradient_NV, None
        return gradient_NV * upstream.to(gradient_NV.dtype), None


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of the targets in nats, summed, computed in float32 whatever the logits' dtype.

    Args:
        logits: [N, V].
        targets: int64 [N].

    Returns:
        float32 scalar.
    """
    total: Tensor = _CrossEntropySum.apply(logits, targets)
    return total
