"""The spectral rule: initial weights and learning rates under which a wide model trains like a narrow one.

Yang, Simon and Bernstein 2023, "A spectral condition for feature learning": each weight matrix, and each of its
updates, is to have a spectral norm of the order of sqrt(outputs / inputs). With m the width over the base width, and
all else growing with the width (heads keep theirs), that comes to the following, which for Adam is muP (Yang et al.
2022):

| parameters | initial weights | rate of Adam and its like | rate of Muon |
|---|---|---|---|
| matrices inside | 1 / sqrt(m) | 1 / m | 1 / sqrt(m), as it is scaled to the size of Adam's updates |
| output projection of its own, router, scores | 1 / m | 1 / m | 1 / m |
| embeddings, norms, biases | 1 | 1 | 1 |
| last norm, where the projection is the embedding | 1 / m | 1 / m | - |

The last line does with a norm's gain what others do with a multiplier of the logits, which files of Hugging Face models
have no place for.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import nn

from llmkit.errors import ConfigError
from llmkit.model.heads import CausalLMHead, MaskedLMHead
from llmkit.model.layers import OffsetRMSNorm
from llmkit.model.transformer import Transformer
from llmkit.train.blocks import repeated_blocks


class WidthFactors(NamedTuple):
    """What the width does to a parameter: factors of its initial values, and of the rates of Adam and of Muon."""

    initial: float
    adam: float
    muon: float


def width_factors(model: nn.Module, base_width: int) -> dict[str, WidthFactors]:
    """The rule's factors by name of parameter, shared parameters once.

    Raises:
        ConfigError: the model has adapters, or its tied output projection has no norm before it.
    """
    transformer = cast(Transformer, model)
    m = transformer.config.width / base_width
    inside = {id(p) for block in repeated_blocks(model) for p in block.parameters()}
    # Embeddings that are multiplied by the root of the width grow with it by themselves.
    token = m**-0.5 if transformer.config.scale_embeddings else 1.0
    last = _norm_before_tied_projection(transformer)
    gains = set() if last is None else {id(parameter) for parameter in last.parameters()}
    found = {}
    for name, parameter in model.named_parameters():
        if ".adapter." in name:
            raise ConfigError("base_width is for whole models, and this one has an adapter.", hint="Remove the key.")
        matrix = parameter.dim() >= 2 and not name.endswith(".bias")
        if id(parameter) in gains:
            found[name] = WidthFactors(1 / (m * token), 1 / (m * token), 1 / (m * token))
        elif name == "embeddings.token.weight":
            found[name] = WidthFactors(token, token, token)
        elif not matrix or name.startswith("embeddings."):
            found[name] = WidthFactors(1.0, 1.0, 1.0)
        elif name.endswith((".router.weight", "head.projection.weight", "head.score.weight")):
            found[name] = WidthFactors(1 / m, 1 / m, 1 / m)
        else:
            assert id(parameter) in inside or name.startswith("head.")
            found[name] = WidthFactors(m**-0.5, 1 / m, m**-0.5)
    return found


def _norm_before_tied_projection(model: Transformer) -> nn.Module | None:
    head = model.head
    tied = isinstance(head, CausalLMHead | MaskedLMHead) and head.projection.weight is model.embeddings.token.weight
    if not tied:
        return None
    last = head.norm if isinstance(head, MaskedLMHead) else model.norm
    if last is None:
        raise ConfigError(
            f"the spectral rule (base_width) needs a norm before a tied output projection, and {model.config.family} "
            "has none.",
            hint="Set `tie_embeddings: false`, or remove `optimizer.base_width`.",
        )
    return last


@torch.no_grad()
def scale_initial_weights(model: Transformer, base_width: int) -> None:
    """Give new weights the sizes of the rule, in place; at the base width they stay as they are."""
    factors = width_factors(model, base_width)
    offsets = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, OffsetRMSNorm)}
    for name, parameter in model.named_parameters():
        factor = factors[name].initial
        if name in offsets:
            # These norms multiply by 1 + weight.
            parameter.add_(1).mul_(factor).sub_(1)
        elif factor != 1.0:
            parameter.mul_(factor)
