"""The weights of a model as plain numbers, whatever it keeps them in: adapters merged, quantized maps made dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from llmkit.model.adapters.lora import LowRank
from llmkit.model.layers import Linear
from llmkit.model.quantization.int8 import Int8Embedding


@dataclass(frozen=True)
class PlainWeight:
    """One weight, made when it is read.

    Attributes:
        shape, dtype: known before.
        read: gives the tensor, without gradients; not to be changed in place.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def part(self, index: int) -> PlainWeight:
        """The weight at an index of the first dimension, such as one expert's."""
        return PlainWeight(self.shape[1:], self.dtype, lambda: self.read()[index])


def plain_weights(model: nn.Module) -> dict[str, PlainWeight]:
    """The model's weights by name as they are without adapters and quantization, shared ones once.

    A map with an adapter has the merged weight, rounded once to the base weight's dtype.
    """
    found: dict[str, PlainWeight] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, LowRank):
            continue
        if isinstance(module, Int8Embedding):
            # One tensor with the output map, which comes later, as a dense embedding would be.
            shape = (module.num_embeddings, module.embedding_dim)
            found[f"{path}.weight"] = PlainWeight(shape, module.dtype, partial(dense_weight, module.output))
            seen.add(id(module.output))
        changed = isinstance(module, Linear) and (type(module) is not Linear or module.adapter is not None)
        if changed and id(module) not in seen:
            assert isinstance(module, Linear)
            shape = (module.out_features, module.in_features)
            found[f"{path}.weight"] = PlainWeight(shape, _dtype(module), partial(dense_weight, module))
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or (changed and leaf == "weight"):
                continue
            seen.add(id(parameter))
            found[f"{path}.{leaf}"] = PlainWeight(tuple(parameter.shape), parameter.dtype, parameter.detach)
    return found


@torch.no_grad()
def dense_weight(linear: Linear) -> Tensor:
    """The weight [outputs, inputs] of a linear map with its adapter, if it has one, merged and rounded once."""
    adapter = linear.adapter
    if isinstance(adapter, LowRank):
        return adapter.merged_weight(linear).to(_dtype(linear))
    return linear.dense_weight().detach()


def _dtype(linear: Linear) -> torch.dtype:
    """Of the dense weight."""
    if type(linear) is Linear:
        return linear.weight.dtype
    # Scales are of the dtype of the weight that was quantized.
    scale = next(buffer for buffer in linear.buffers(recurse=False) if buffer.is_floating_point())
    return scale.dtype
