"""Activation checkpointing: what a block keeps for its backward pass, and what it computes anew there.

Chen et al. 2016, "Training deep nets with sublinear memory cost". A recomputed block keeps its input alone (`full`), or
its input and what its matrix products gave (`selective`, as in Korthikanti et al. 2023). The second computation draws
the same random numbers and runs the same kernels, so gradients are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from llmkit.train.blocks import repeated_blocks
from llmkit.train.config import TrainConfig
from llmkit.train.memory.config import PartialCheckpointing

_KEPT = tuple(
    getattr(torch.ops.aten, name).default
    for name in (
        "mm",
        "addmm",
        "_scaled_mm",
        "_grouped_mm",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
)
"""What is dear to compute and cheap to keep: projections, and attention that makes no score matrix."""


def recomputed_blocks(config: TrainConfig, blocks: int) -> int:
    """How many of a model's blocks are recomputed.

    Args:
        config: settings, with a budget resolved to a number of blocks.
        blocks: that the model has.
    """
    setting = config.activation_checkpointing
    if isinstance(setting, PartialCheckpointing):
        assert setting.blocks is not None
        return min(setting.blocks, blocks)
    return 0 if setting == "none" else blocks


def recompute_activations(model: nn.Module, config: TrainConfig) -> None:
    """Have blocks compute their activations anew in the backward pass, in place; to call before they are compiled.

    The first blocks are those recomputed: when their turn comes in the backward pass, what later ones kept is gone.
    Names of parameters stay as they are. Without gradients a block runs as ever.
    """
    blocks = repeated_blocks(model)
    contexts = _selective_contexts if config.activation_checkpointing == "selective" else None
    for block in blocks[: recomputed_blocks(config, len(blocks))]:
        setattr(block, "forward", _Recomputed(block.forward, contexts))  # noqa: B010


class _Recomputed:
    """A block's forward pass as a checkpointed one."""

    def __init__(self, forward: Callable[..., Any], contexts: Callable[[], Any] | None) -> None:
        self.plain = forward
        options: dict[str, Any] = {} if contexts is None else {"context_fn": contexts}
        self.checkpointed = partial(checkpoint, forward, use_reentrant=False, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.plain(*args, **kwargs)
        return self.checkpointed(*args, **kwargs)


def _selective_contexts() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
