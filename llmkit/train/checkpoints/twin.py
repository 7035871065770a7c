"""A model beside the one that is trained: the same modules around other tensors, saved while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


class Twin:
    """The modules of a model, copied but for their tensors, which are shared until `filled` replaces some of them.

    Args:
        model: whose names of tensors are those of its `state_dict`; of shared ones, each name stands for all.
    """

    def __init__(self, model: nn.Module) -> None:
        named = model.state_dict(keep_vars=True)
        self._names: dict[int, list[str]] = {}
        for name, tensor in named.items():
            self._names.setdefault(id(tensor), []).append(name)
        self._slots: dict[str, list[tuple[dict[str, Any], str]]] = {}
        self._copies: dict[int, nn.Module] = {}
        self._model = self._copy(model)

    def filled(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The copy around tensors by name; where there is none, it shares the trained model's."""
        for name, tensor in tensors.items():
            places = self._slots[name]
            trained = any(isinstance(slots[leaf], nn.Parameter) for slots, leaf in places)
            value = nn.Parameter(tensor, requires_grad=False) if trained else tensor
            for slots, leaf in places:
                slots[leaf] = value
        return self._model

    def _copy(self, module: nn.Module) -> nn.Module:
        if id(module) in self._copies:
            return self._copies[id(module)]
        # FSDP2 puts a class of its own before the module's, which can neither be copied nor computed with here.
        kind = next(
            each for each in type(module).__mro__ if issubclass(each, nn.Module) and not issubclass(each, FSDPModule)
        )
        copy: nn.Module = object.__new__(kind)
        self._copies[id(module)] = copy
        copy.__dict__.update(module.__dict__)
        for store in ("_parameters", "_buffers"):
            slots = copy.__dict__[store] = dict(module.__dict__[store])
            for leaf, tensor in slots.items():
                for name in self._names.get(id(tensor), ()):
                    self._slots.setdefault(name, []).append((slots, leaf))
        children = module.__dict__["_modules"].items()
        copy.__dict__["_modules"] = {name: None if child is None else self._copy(child) for name, child in children}
        return copy
