"""The loss of language modelling, causal or masked, and its measure on held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import cast

from torch import nn

from llmkit.model.transformer import Transformer
from llmkit.pretrain.batches import Batch, on_device
from llmkit.train.contract import LossOutput
from llmkit.train.losses import LanguageModelHead, language_model_loss, z_loss_metrics
from llmkit.train.routing import collector, with_balance


class LanguageModelling:
    """Cross-entropy in nats, summed over the tokens to be predicted; logits are computed for these alone.

    In training, the z-loss (`language_model_loss`) and, of a model with routed experts, their load-balancing loss too
    (`llmkit.train.routing`).

    Args:
        z_loss: weight of the z-loss.
    """

    def __init__(self, z_loss: float = 0.0) -> None:
        self._z_loss = z_loss

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        """Loss of a micro-batch; its weight is the number of tokens to be predicted."""
        transformer = cast(Transformer, model)
        batch = on_device(batch, transformer.embeddings.token.weight.device)
        routing = collector(transformer)
        hidden_NW = transformer.hidden(batch.input_ids, batch.attention_mask, routing=routing).flatten(0, 1)
        if batch.positions is not None:
            hidden_NW = hidden_NW.index_select(0, batch.positions)
        z_loss, count = self._z_loss if model.training else 0.0, batch.targets.numel()
        found = language_model_loss(cast(LanguageModelHead, transformer.head), hidden_NW, batch.targets, z_loss=z_loss)
        metrics = z_loss_metrics(found, count) if z_loss else {}
        output = LossOutput(found.sum, count, metrics, batch.input_ids.numel())
        return with_balance(output, transformer, routing, batch.attention_mask)


def held_out_loss(batches: Iterable[Batch], bits_per_byte: float | None) -> Callable[[nn.Module], dict[str, float]]:
    """A validation that measures loss (nats for each token), perplexity and bits per byte.

    Args:
        batches: the same ones each time.
        bits_per_byte: bits per byte of text for a loss of one nat; None where that is not defined.
    """
    objective = LanguageModelling()

    def measure(model: nn.Module) -> dict[str, float]:
        outputs = [objective.loss(model, batch) for batch in batches]
        loss = sum(float(output.sum) for output in outputs) / sum(float(output.weight) for output in outputs)
        found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if bits_per_byte is not None:
            found["bits_per_byte"] = loss * bits_per_byte
        return found

    return measure
