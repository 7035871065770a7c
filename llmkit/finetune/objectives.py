"""What fine-tuning minimises: cross-entropy of what the assistant says, or of the labels of texts.

Shapes: B sequences, L tokens, N tokens that count, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.finetune.batches import Indices, pad
from llmkit.finetune.encoding import Sequences
from llmkit.model.documents import Documents, documents_of
from llmkit.model.transformer import Transformer
from llmkit.train.contract import LossOutput
from llmkit.train.losses import LanguageModelHead, language_model_loss, z_loss_metrics
from llmkit.train.metrics import Window
from llmkit.train.routing import collector, with_balance


class ChatBatch(NamedTuple):
    """Conversations without their last token, and the tokens to predict.

    Args:
        input_ids: int [B, L].
        attention_mask: int [B, L], 1 at tokens that another one follows.
        positions: where the tokens that count are predicted, as indices into [B * L], [N].
        targets: these tokens, [N].
        documents: where conversations begin, if several stand in one row.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    targets: Tensor
    documents: Documents | None = None


class TextBatch(NamedTuple):
    """Texts, [B, L] as above, and their labels [B]."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def collate_chat(examples: Sequences, indices: Indices, pad_id: int) -> ChatBatch:
    """A micro-batch of conversations."""
    spans = [examples.span(int(index)) for index in indices]
    ids, attention = pad([examples.tokens[span] for span in spans], pad_id)
    counted, _ = pad([examples.targets[span].astype(np.int32) for span in spans], 0)
    # What position t sees predicts the token at t + 1.
    positions = np.flatnonzero(counted[:, 1:])
    return ChatBatch(
        torch.from_numpy(ids[:, :-1].copy()),
        torch.from_numpy(attention[:, 1:].copy()),
        torch.from_numpy(positions),
        torch.from_numpy(ids[:, 1:].reshape(-1)[positions]),
    )


def collate_packed(examples: Sequences, indices: Indices, pad_id: int) -> ChatBatch:
    """A micro-batch of conversations behind one another in one row, kept apart: nothing is padded."""
    ids, counted, borders, length = [], [], [], 0
    for index in indices:
        span = examples.span(int(index))
        ids.append(examples.tokens[span].astype(np.int64))
        counted.append(examples.targets[span][1:].astype(np.bool_))
        borders.append(length)
        length += len(counted[-1])
    positions = np.flatnonzero(np.concatenate(counted))
    inputs = torch.from_numpy(np.concatenate([sequence[:-1] for sequence in ids])[None])
    return ChatBatch(
        inputs,
        torch.ones_like(inputs),
        torch.from_numpy(positions),
        torch.from_numpy(np.concatenate([sequence[1:] for sequence in ids])[positions]),
        documents_of(1, length, np.array(borders, dtype=np.int64)),
    )


def collate_texts(examples: Sequences, indices: Indices, pad_id: int) -> TextBatch:
    """A micro-batch of labelled texts."""
    ids, attention = pad([examples.tokens[examples.span(int(index))] for index in indices], pad_id)
    return TextBatch(torch.from_numpy(ids), torch.from_numpy(attention), torch.from_numpy(examples.targets[indices]))


class ChatObjective:
    """Cross-entropy of the next token, in nats, summed over what the assistant says; its weight is their number.

    The output projection is computed at these tokens alone. In training the z-loss (`language_model_loss`) is added,
    and of a model with routed experts their load-balancing loss (`llmkit.train.routing`).

    Args:
        z_loss: weight of the z-loss.
    """

    def __init__(self, z_loss: float = 0.0) -> None:
        self._z_loss = z_loss

    def loss(self, model: nn.Module, batch: ChatBatch) -> LossOutput:
        """Loss of a micro-batch, with the share of tokens that the model would have chosen as `token_accuracy`."""
        transformer = cast(Transformer, model)
        input_ids, attention_mask, positions, targets = _on_device_of(model, batch[:4])
        documents = None if batch.documents is None else batch.documents.to(input_ids.device, non_blocking=True)
        routing = collector(transformer)
        seen = attention_mask if documents is None else None
        hidden_BLW = transformer.hidden(input_ids, seen, documents=documents, routing=routing)
        hidden_NW = hidden_BLW.flatten(0, 1).index_select(0, positions)
        z_loss = self._z_loss if model.training else 0.0
        found = language_model_loss(cast(LanguageModelHead, transformer.head), hidden_NW, targets, z_loss=z_loss)
        output = LossOutput(
            found.sum,
            len(targets),
            {
                **(z_loss_metrics(found, len(targets)) if z_loss else {}),
                "token_accuracy": (found.right, len(targets)),
            },
            int(batch.attention_mask.sum()),
        )
        return with_balance(output, transformer, routing, attention_mask)


class ClassificationObjective:
    """Cross-entropy of the label, in nats, summed over texts; its weight is their number."""

    def loss(self, model: nn.Module, batch: TextBatch) -> LossOutput:
        """Loss of a micro-batch, with the share of texts classified rightly as `accuracy`."""
        input_ids, attention_mask, labels = _on_device_of(model, batch)
        logits = _precise(model(input_ids, attention_mask))
        right = (logits.detach().argmax(-1) == labels).sum()
        return LossOutput(
            F.cross_entropy(logits, labels, reduction="sum"),
            len(labels),
            {"accuracy": (right, len(labels))},
            int(batch.attention_mask.sum()),
        )


class _AnyObjective(Protocol):
    def loss(self, model: nn.Module, batch: Any) -> LossOutput: ...


def mean_loss(
    objective: _AnyObjective, batches: Callable[[], Iterable[Any]]
) -> Callable[[nn.Module], dict[str, float]]:
    """A validation that gives the objective's loss and metrics, averaged over the units of all batches."""

    def validate(model: nn.Module) -> dict[str, float]:
        window = Window()
        for batch in batches():
            output = objective.loss(model, batch)
            window.add("loss", output.sum, output.weight)
            for name, (total, weight) in output.metrics.items():
                window.add(name, total, weight)
        return window.averages()

    return validate


def _precise(logits: Tensor) -> Tensor:
    """Logits in float32 at least: the sum over the vocabulary needs it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _on_device_of(model: nn.Module, batch: Iterable[Tensor]) -> list[Tensor]:
    device = next(model.parameters()).device
    return [tensor.to(device, non_blocking=True) for tensor in batch]
