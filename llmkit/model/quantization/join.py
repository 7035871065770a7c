"""Quantized maps of the same input as one, which reads the same codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from llmkit.model.layers import Linear
from llmkit.model.quantization.linear import QuantizedLinear


def join(linears: Sequence[Linear]) -> QuantizedLinear | None:
    """One map with the outputs of several side by side, for a CPU.

    The maps given read the codes of the one made, of which there are no two copies for it.

    Returns:
        None where they are not quantized alike, carry adapters, or are not laid out so that they can be joined.
    """
    first = linears[0]
    if not isinstance(first, QuantizedLinear) or first.device.type != "cpu":
        return None
    parts = [linear for linear in linears if isinstance(linear, QuantizedLinear) and _alike(linear, first)]
    if len(parts) < len(linears):
        return None
    if len(parts) == 1:
        return first
    if not all(part.prepare_to_join() for part in parts):
        return None
    outputs = sum(part.out_features for part in parts)
    biases = [part.bias.detach() for part in parts if part.bias is not None]
    made = first.widened(outputs, nn.Parameter(torch.cat(biases), requires_grad=False) if biases else None)
    for name, dimension in first.along_outputs.items():
        whole = torch.cat([part.get_buffer(name) for part in parts], dim=dimension)
        setattr(made, name, whole)
        sizes = [part.get_buffer(name).shape[dimension] for part in parts]
        for part, view in zip(parts, whole.split(sizes, dim=dimension), strict=True):
            setattr(part, name, view)
    return made


def _alike(one: QuantizedLinear, other: QuantizedLinear) -> bool:
    same = type(one) is type(other) and one.in_features == other.in_features
    return same and one.adapter is None and (one.bias is None) == (other.bias is None)
