"""What a checkpoint holds of model, optimizers and source, as tensors by name."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmkit.model.quantization.linear import QuantizedLinear
from llmkit.train.contract import State

Named = Sequence[tuple[str, nn.Parameter]]

_NAMES = ("params", "param_names")


def weight_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and persistent buffers by name, shared ones once; frozen parameters are left out, as are the
    codes and scales of quantized maps, which no training changes."""
    found: dict[str, Tensor] = {}
    quantized = (module for module in model.modules() if isinstance(module, QuantizedLinear))
    seen = {id(buffer) for module in quantized for buffer in module.buffers(recurse=False)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        if isinstance(tensor, Tensor) and not frozen and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def optimizer_tensors(parameters: Named, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """The tensors of the optimizers' state as `<key>:<parameter's name>`."""
    return {label: value for label, value in _states(parameters, optimizers) if isinstance(value, Tensor)}


def optimizer_numbers(parameters: Named, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """What the optimizers keep beside tensors: JSON values of parameters, and those of groups."""
    values = {label: value for label, value in _states(parameters, optimizers) if not isinstance(value, Tensor)}
    groups = [[_plain(group) for group in optimizer.param_groups] for optimizer in optimizers]
    return {"state": values, "groups": groups}


def _states(parameters: Named, optimizers: Sequence[Optimizer]) -> Iterator[tuple[str, Any]]:
    for optimizer in optimizers:
        for name, parameter in parameters:
            for key, value in optimizer.state.get(parameter, {}).items():
                yield f"{key}:{name}", value


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (int, float, str, list, tuple, type(None))
    return {key: value for key, value in group.items() if key not in _NAMES and isinstance(value, kinds)}


def make_state(parameters: Named, optimizers: Sequence[Optimizer]) -> None:
    """Have the optimizers make the state that they keep, divided over the ranks as they divide it, for numbers to be
    loaded into. Weights are changed on the way: they are to be loaded after this.
    """
    for optimizer in optimizers:
        optimizer.state.clear()
    for _, parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def load_numbers(
    parameters: Named, optimizers: Sequence[Optimizer], numbers: Mapping[str, Any], saved: Container[str]
) -> None:
    """Set what `optimizer_numbers` names, and drop state that was not saved: that of a parameter without updates.

    Args:
        parameters, optimizers: what is trained.
        numbers: of the checkpoint.
        saved: labels of the tensors of the checkpoint.
    """
    for optimizer in optimizers:
        for name, parameter in parameters:
            state = optimizer.state.get(parameter, {})
            for key in list(state):
                label = f"{key}:{name}"
                if label in numbers["state"]:
                    state[key] = numbers["state"][label]
                elif label not in saved:
                    del state[key]
            if not state:
                optimizer.state.pop(parameter, None)
    for optimizer, groups in zip(optimizers, numbers["groups"], strict=True):
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            for key, value in values.items():
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value


def split_state(state: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A source's state as its tensors and its JSON values."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}
