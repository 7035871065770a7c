"""The loss of language modelling, causal or masked, and its measure on held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, cast

from torch import nn

from llmkit.model.transformer import Transformer
from llmkit.pretrain.batches import Batch, on_device
from llmkit.pretrain.parts import own_tokens
from llmkit.train.contract import LossOutput
from llmkit.train.losses import LanguageModelHead, language_model_loss, z_loss_metrics
from llmkit.train.parallel.context import sequence_part
from llmkit.train.routing import collector, with_balance


class LanguageModelling:
    """Cross-entropy in nats, summed over the tokens to be predicted; logits are computed for these alone.

    In training, the z-loss (`language_model_loss`) and, of a model with routed experts, their load-balancing loss too
    (`llmkit.train.routing`).

    Args:
        z_loss: weight of the z-loss.
        sources: names of the sources that batches tell rows of apart; the share of each is a metric.
    """

    def __init__(self, z_loss: float = 0.0, sources: Sequence[str] = ()) -> None:
        self._z_loss, self._sources = z_loss, sources

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        """Loss of a micro-batch; its weight is the number of tokens to be predicted."""
        transformer = cast(Transformer, model)
        part, positions, device = sequence_part(transformer), None, transformer.embeddings.token.weight.device
        if part is not None:
            batch, positions = own_tokens(batch, part, restart=transformer.config.positions == "learned")
            positions = positions.to(device, non_blocking=True)
        batch, routing = on_device(batch, device), collector(transformer)
        attention_mask = batch.attention_mask if batch.documents is None else None
        hidden_NW = transformer.hidden(
            batch.input_ids, attention_mask, positions=positions, documents=batch.documents, routing=routing
        ).flatten(0, 1)
        if batch.positions is not None:
            hidden_NW = hidden_NW.index_select(0, batch.positions)
        z_loss, count = self._z_loss if model.training else 0.0, batch.targets.numel()
        found = language_model_loss(cast(LanguageModelHead, transformer.head), hidden_NW, batch.targets, z_loss=z_loss)
        metrics = z_loss_metrics(found, count) if z_loss else {}
        if batch.sources is not None:
            rows = len(batch.sources)
            for number, name in enumerate(self._sources):
                metrics[f"share/{name}"] = ((batch.sources == number).sum(), rows)
        output = LossOutput(found.sum, count, metrics, batch.input_ids.numel())
        return with_balance(output, transformer, routing, batch.attention_mask)


class HeldOutText(NamedTuple):
    """What a source's validation reads.

    Args:
        batches: the same ones each time.
        bits_per_byte: bits per byte of text for a loss of one nat; None where that is not defined.
        share: of the source in the training, and so in the mean over all.
    """

    batches: Iterable[Batch]
    bits_per_byte: float | None
    share: float = 1.0


def held_out_loss(sources: Mapping[str, HeldOutText]) -> Callable[[nn.Module], dict[str, float]]:
    """A validation that measures loss (nats for each token), perplexity and bits per byte.

    Of several sources it gives the loss of each as `loss/<name>`, and of all the mean by their shares: of the loss over
    tokens, and of bits over bytes.
    """
    objective = LanguageModelling()
    total = sum(source.share for source in sources.values())

    def loss(model: nn.Module, batches: Iterable[Batch]) -> float:
        outputs = [objective.loss(model, batch) for batch in batches]
        sums = [sum(float(output.sum) for output in outputs), sum(float(output.weight) for output in outputs)]
        part = sequence_part(cast(Transformer, model))
        summed, weight = sums if part is None else part.sum(sums)
        return summed / weight

    def measure(model: nn.Module) -> dict[str, float]:
        losses = {name: loss(model, source.batches) for name, source in sources.items()}
        mean = sum(losses[name] * source.share for name, source in sources.items()) / total
        found = {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}
        rates = {name: source.bits_per_byte for name, source in sources.items() if source.bits_per_byte}
        if len(rates) == len(sources):
            # A source's tokens are `share` of all; its bytes are as many more as it has bytes for each token.
            lengths = sum(source.share / rates[name] for name, source in sources.items())
            found["bits_per_byte"] = mean * total / lengths
        if len(sources) > 1:
            found |= {f"loss/{name}": value for name, value in losses.items()}
        return found

    return measure
