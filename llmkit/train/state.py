"""What a checkpoint holds of model, optimizers and source, as tensors by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmkit.errors import ArtifactError
from llmkit.model.quantization.linear import QuantizedLinear
from llmkit.train.contract import State

Named = Sequence[tuple[str, nn.Parameter]]


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


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set the tensors that `weight_tensors` names.

    Raises:
        ArtifactError: other names or shapes.
    """
    wanted = weight_tensors(model)
    if {name: tensor.shape for name, tensor in wanted.items()} != {n: tensor.shape for n, tensor in tensors.items()}:
        raise ArtifactError(
            "the checkpoint's weights are not those of this model.",
            hint="Remove the stage's unfinished folder so that it starts over.",
        )
    for name, tensor in wanted.items():
        tensor.copy_(tensors[name])


def optimizer_tensors(parameters: Named, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state as `<key>:<parameter's name>`; all of it is tensors."""
    return {
        f"{key}:{name}": value
        for optimizer in optimizers
        for name, parameter in parameters
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizers(parameters: Named, optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Set the state that `optimizer_tensors` names."""
    by_name = dict(parameters)
    owner = {
        id(parameter): optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for optimizer in optimizers:
        optimizer.state.clear()
    for label, tensor in tensors.items():
        key, _, name = label.partition(":")
        parameter = by_name[name]
        owner[id(parameter)].state[parameter][key] = tensor.to(parameter.device)


def split_state(state: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A source's state as its tensors and its JSON values."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}
