"""The base of all optimizers: which tensors an update is computed on, and how they are kept from one to the next.

An optimizer says what it keeps for each parameter (`new_state`) and changes weights and state in place (`update`). Here
is what they share: parts of distributed tensors, weights in bfloat16, state in bfloat16 or in the memory of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from llmkit.train.optimizers.rounding import join_, local, places, random_bits, round_stochastically, split

BUCKET = 1 << 22
"""Elements whose wide or moved copies are in memory at once."""

COUNT, COMPENSATION, AVERAGE, AVERAGED = "roundings", "compensation", "average", "averaged"
"""State that keeping needs: how often a parameter was rounded, what its last rounding left out, the average of its
values, and of how many updates."""


@dataclass(frozen=True)
class Keeping:
    """How weights and state are kept between updates, which are computed in float32.

    Args:
        rounding: of weights in bfloat16; see `llmkit.train.optimizers.rounding`.
        narrow_state: state of a parameter's size in bfloat16, rounded stochastically.
        offload: state of a parameter's size in the memory of the CPU.
        seed: of stochastic rounding.
        average: decay of an exponential moving average of the weights, in float32; None for no average. After t updates
            the decay is at most (1 + t) / (10 + t), so that the first weights are soon forgotten.
    """

    rounding: Literal["nearest", "stochastic", "kahan"] = "nearest"
    narrow_state: bool = False
    offload: bool = False
    seed: int = 0
    average: float | None = None


PLAIN = Keeping()


class UpdateRule(Optimizer):
    """An optimizer whose update is computed in float32 (or float64) on lists of tensors.

    All of its state is tensors by parameter, so that a checkpoint can hold it; state that has a parameter's shape is
    distributed like the parameter.

    Attributes:
        whole: distributed tensors go to `update` as they are; otherwise their local parts do, which is right for rules
            that treat each element alone.
    """

    whole: ClassVar[bool] = False
    wide: ClassVar[bool] = False

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], keeping: Keeping = PLAIN) -> None:
        super().__init__(params, defaults)
        self.keeping = keeping

    def new_state(self, parameter: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """State before the first update; `dtype` is that of numbers which have the parameter's shape."""
        raise NotImplementedError

    def update(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]]
    ) -> None:
        """Change weights and state in place."""
        raise NotImplementedError

    def batches(self, members: list[int], parameters: list[Tensor]) -> Iterator[list[int]]:
        """Members (indices of parameters) that are updated together: all, or as many as fit the memory of copies."""
        if not self._in_parts(parameters):
            yield members
            return
        batch: list[int] = []
        room = BUCKET
        for member in members:
            size = local(parameters[member]).numel()
            if batch and size > room:
                yield batch
                batch, room = [], BUCKET
            batch.append(member)
            room -= size
        if batch:
            yield batch

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            parameters = group["params"]
            members = [index for index, parameter in enumerate(parameters) if parameter.grad is not None]
            for batch in self.batches(members, parameters) if members else ():
                names = group.get("param_names") or [str(index) for index in range(len(parameters))]
                self._update(group, [parameters[member] for member in batch], [names[member] for member in batch])
        if self.keeping.offload and torch.cuda.is_available():
            # Copies to pinned memory are not there yet when they return.
            torch.cuda.current_stream().synchronize()

    def evaluation_point(self, parameter: Tensor) -> Tensor | None:
        """The weights that a parameter is to be evaluated and saved with; None where those are the trained ones.

        Returns:
            a tensor of the parameter's shape, distributed as it is, on any device.
        """
        state: dict[str, Tensor] = self.state[parameter]
        return state.get(AVERAGE)

    def _in_parts(self, parameters: list[Tensor]) -> bool:
        keeping = self.keeping
        return self.wide or keeping.offload or keeping.narrow_state or any(p.dtype.itemsize < 4 for p in parameters)

    def _update(self, group: dict[str, Any], parameters: list[Tensor], names: list[str]) -> None:
        dtypes = [torch.promote_types(parameter.dtype, torch.float32) for parameter in parameters]
        stored = [self._state(parameter, dtype) for parameter, dtype in zip(parameters, dtypes, strict=True)]
        states = [self._working_state(*pair) for pair in zip(stored, parameters, strict=True)]
        weights = [self._working_weight(*triple) for triple in zip(parameters, dtypes, stored, strict=True)]
        gradients = [self._gradient(*pair) for pair in zip(parameters, dtypes, strict=True)]
        self.update(group, weights, gradients, states)
        if self.keeping.average is not None:
            _average(weights, states, self.keeping.average)
        for keep in zip(parameters, weights, stored, states, names, strict=True):
            self._keep(*keep)

    def _state(self, parameter: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state.update(self.new_state(parameter, torch.bfloat16 if self.keeping.narrow_state else dtype))
            narrow = parameter.dtype == torch.bfloat16
            if narrow and self.keeping.rounding == "kahan":
                state[COMPENSATION] = torch.zeros_like(parameter, dtype=torch.int16)
            if self.keeping.narrow_state or (narrow and self.keeping.rounding == "stochastic"):
                state[COUNT] = torch.zeros((), dtype=torch.int64, device=parameter.device)
            if self.keeping.average is not None:
                state[AVERAGE] = parameter.detach().clone().to(dtype)
                state[AVERAGED] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        if self.keeping.offload:
            for name, value in state.items():
                if value.dim() and local(value).device.type != "cpu":
                    state[name] = _in_cpu_memory(value)
        return state

    def _working_state(self, stored: dict[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
        """What `update` sees of the state: on the parameter's device, in float32 where it is kept in bfloat16."""
        working = {}
        for name, value in stored.items():
            if name in (COUNT, COMPENSATION):
                continue
            seen = value if self.whole else local(value)
            if self.keeping.offload and value.dim():
                seen = seen.to(local(parameter).device, non_blocking=True, copy=True)
            working[name] = seen.float() if seen.dtype == torch.bfloat16 else seen
        return working

    def _working_weight(self, parameter: Tensor, dtype: torch.dtype, stored: dict[str, Tensor]) -> Tensor:
        seen = parameter.detach() if self.whole else local(parameter.detach())
        if seen.dtype == dtype:
            return seen
        wide = seen.to(dtype)
        if COMPENSATION in stored:
            join_(local(wide), local(stored[COMPENSATION]).to(local(wide).device, non_blocking=True))
        return wide

    def _gradient(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        if isinstance(parameter, DTensor) and isinstance(gradient, DTensor):
            if gradient.placements != parameter.placements:
                gradient = gradient.redistribute(parameter.device_mesh, parameter.placements)
            gradient = gradient if self.whole else local(gradient)
        return gradient if gradient.dtype == dtype else gradient.to(dtype)

    def _keep(
        self, parameter: Tensor, weight: Tensor, stored: dict[str, Tensor], state: dict[str, Tensor], name: str
    ) -> None:
        """Write the changed weight and state back to where they are kept."""
        count, index = stored.get(COUNT), None
        if count is not None:
            count += 1
            index = places(parameter)
        target, value = local(parameter.detach()), local(weight)
        if target.dtype != value.dtype:
            if COMPENSATION in stored:
                value, rest = split(value)
                local(stored[COMPENSATION]).copy_(rest, non_blocking=True)
            elif index is not None and self.keeping.rounding == "stochastic":
                assert count is not None
                value = round_stochastically(value, random_bits(index, name, self.keeping.seed, count))
            target.copy_(value)
        for key, working in state.items():
            kept, changed = local(stored[key]), local(working)
            if kept.dtype == changed.dtype and not (self.keeping.offload and kept.dim()):
                continue  # Changed in place.
            if kept.dtype == torch.bfloat16 and index is not None and count is not None and kept.shape == index.shape:
                bits = random_bits(index, f"{name}/{key}", self.keeping.seed, count)
                changed = round_stochastically(changed, bits)
            kept.copy_(changed, non_blocking=True)


def _average(weights: list[Tensor], states: list[dict[str, Tensor]], decay: float) -> None:
    counts = [state[AVERAGED] for state in states]
    torch._foreach_add_(counts, 1)
    rates = 1 - torch.clamp((1 + torch.stack(counts)) / (10 + torch.stack(counts)), max=decay)
    for weight, state, rate in zip(weights, states, rates.unbind(), strict=True):
        local(state[AVERAGE]).lerp_(local(weight), rate.to(weight.dtype))


def _in_cpu_memory(value: Tensor) -> Tensor:
    moved = value.to("cpu")
    if torch.cuda.is_available():
        if isinstance(moved, DTensor):
            moved._local_tensor = moved._local_tensor.pin_memory()
        else:
            moved = moved.pin_memory()
    return moved
