"""Cross-entropy of language models."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of the targets in nats, summed, computed in float32 whatever the logits' dtype.

    Args:
        logits: [N, V].
        targets: int64 [N].

    Returns:
        float32 scalar.
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum")
