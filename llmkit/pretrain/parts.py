"""A rank's part of each sequence of a batch, where ranks share sequences (`llmkit.train.parallel.context`)."""

from __future__ import annotations

import torch
from torch import Tensor

from llmkit.pretrain.batches import Batch
from llmkit.train.parallel.context import SequencePart


def own_tokens(batch: Batch, part: SequencePart, *, restart: bool) -> tuple[Batch, Tensor]:
    """What of a batch a rank predicts, and its tokens' positions, [l] or [B, l].

    Args:
        batch: whole sequences, on the CPU.
        part: of each sequence.
        restart: whether positions begin anew in each document.

    Returns:
        tokens and targets of the part alone; attention mask and documents are still those of whole sequences.

    Raises:
        ConfigError: the sequences cannot be cut evenly.
    """
    rows, length = batch.input_ids.shape
    places = part.places(length)
    positions = batch.documents.positions[:, places] if batch.documents is not None and restart else places
    inputs = batch.input_ids[:, places].contiguous()
    if batch.positions is None:
        targets = batch.targets.view(rows, length)[:, places].flatten()
        return batch._replace(input_ids=inputs, targets=targets), positions
    order = torch.full((length,), -1)
    order[places] = torch.arange(len(places))
    own = order[batch.positions % length]
    kept = own >= 0
    predicted = batch.positions[kept] // length * len(places) + own[kept]
    return batch._replace(input_ids=inputs, targets=batch.targets[kept], positions=predicted), positions
