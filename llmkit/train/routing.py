"""The load-balancing loss of models with routed experts, beside what an objective minimises."""

from __future__ import annotations

from torch import Tensor

from llmkit.model.experts import load_balancing_loss
from llmkit.model.transformer import Transformer
from llmkit.train.contract import LossOutput


def collector(model: Transformer) -> list[Tensor] | None:
    """What `Transformer.hidden` takes as `routing`: a list, in training of a model whose config weighs the loss."""
    return [] if model.training and model.config.router_loss_weight > 0 else None


def with_balance(
    output: LossOutput, model: Transformer, routing: list[Tensor] | None, attention_mask: Tensor | None = None
) -> LossOutput:
    """Add the load-balancing loss to a micro-batch's loss, at its weight for each unit, and as metric `router_loss`.

    It is reckoned over the tokens of the micro-batch: how even the use of experts is in each.

    Args:
        output: without it.
        model: whose config says the weight.
        routing: what `collector` gave, filled; nothing is added where that was None.
        attention_mask: [B, L], 0 at padding.
    """
    if not routing:
        return output
    config = model.config
    balance = load_balancing_loss(routing, config.experts_per_token, attention_mask) * output.weight
    metrics = {"loss": (output.sum.detach(), output.weight), **output.metrics}
    metrics["router_loss"] = (balance.detach(), output.weight)
    return output._replace(sum=output.sum + config.router_loss_weight * balance, metrics=metrics)
