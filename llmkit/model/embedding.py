"""Embeddings of many sequences, in batches of like length.

Shapes: N sequences, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from llmkit.errors import DataError, ModelError
from llmkit.model.heads import EmbeddingHead
from llmkit.model.transformer import Transformer


def set_pooling(
    model: Transformer, pooling: Literal["first", "last", "mean"], *, normalize: bool, context: int | None = None
) -> None:
    """Choose how an embedding model makes one vector of a text; `save_model` writes it.

    Args:
        model: with an embedding head.
        pooling: the vector of the first or the last token, or the mean of all.
        normalize: whether vectors are scaled to length 1.
        context: how many tokens of a text are read, by default as many as the model can.

    Raises:
        ModelError: the model has another head.
    """
    _require_embedding_head(model)
    settings = {"pooling": pooling, "normalize_embedding": normalize, "embedding_context": context}
    model.config = model.config.model_copy(update=settings)
    model.head = EmbeddingHead(model.config)


@torch.inference_mode()
def embed_sequences(model: Transformer, sequences: Sequence[Sequence[int]], batch_size: int = 64) -> Tensor:
    """The embedding of each sequence, fp32 [N, W] on the CPU, in their order.

    The longest go first, so that batches hardly hold padding and a batch too large for memory fails at once.

    Args:
        model: with an embedding head, in evaluation mode.
        sequences: token ids of each text.
        batch_size: most sequences at once.

    Raises:
        ModelError: the model has another head.
        DataError: a sequence has no tokens.
    """
    _require_embedding_head(model)
    empty = next((index for index, ids in enumerate(sequences) if not len(ids)), None)
    if empty is not None:
        raise DataError(f"sequence {empty} has no tokens, and so no embedding.")
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    embeddings = torch.empty(len(sequences), model.config.width)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        input_ids, mask = _pad([sequences[index] for index in chosen], model.config.pad_id or 0)
        mask_or_none = None if mask.all() else mask.to(model.device)
        embeddings[chosen] = model(input_ids.to(model.device), mask_or_none).cpu()
    return embeddings


def _pad(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(ids) for ids in sequences])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    input_ids = torch.full(mask.shape, pad_id)
    input_ids[mask] = torch.tensor([token for ids in sequences for token in ids])
    return input_ids, mask.long()


def _require_embedding_head(model: Transformer) -> None:
    if model.config.head != "embedding":
        raise ModelError(
            f"a model with a {model.config.head} head gives no embeddings.",
            hint='Open it by load_model(..., head="embedding"), or name a sentence model.',
        )
