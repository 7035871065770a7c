"""What a training step holds in memory and computes, found by running it on tensors that have shapes and no numbers.

The code that runs is the code that trains, so the figures follow it wherever it changes: every tensor that is kept for
the backward pass, every gradient and every moment is there, as a size alone.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from llmkit.train.config import TrainConfig
from llmkit.train.contract import Objective
from llmkit.train.memory.recompute import recompute_activations
from llmkit.train.optimizers.build import build_optimizers
from llmkit.train.optimizers.rounding import narrow_trained_weights

aten = torch.ops.aten


@dataclass(frozen=True)
class StepCost:
    """Cost of one optimizer step on one device; memory in bytes.

    A step has two moments of highest use: in the passes over its micro-batches, and in the update.

    Args:
        weights: parameters and buffers.
        gradients: all of them, as the update finds them.
        early_gradients: those that are there at the passes' highest use already.
        optimizer: the optimizers' state.
        activations: all else at the passes' highest use: what is kept for the backward pass, and what is worked on.
        work: all else at the update's highest use.
        pass_flops: floating-point operations of one micro-batch, forward and backward, recomputation included.
        update_flops: those of the optimizers' matrix products.
    """

    weights: int
    gradients: int
    early_gradients: int
    optimizer: int
    activations: int
    work: int
    pass_flops: int
    update_flops: int

    def parts(self) -> dict[str, int]:
        """What there is at the moment of the highest use."""
        always = {"weights": self.weights, "optimizer": self.optimizer}
        if self.early_gradients + self.activations >= self.gradients + self.work:
            return {**always, "gradients": self.early_gradients, "activations": self.activations}
        return {**always, "gradients": self.gradients, "update": self.work}

    @property
    def total(self) -> int:
        """Bytes at the moment of the highest use."""
        return sum(self.parts().values())


@dataclass(frozen=True)
class UpdateCost:
    """Cost of the update of a step, which the rows of its micro-batches do not change; memory in bytes.

    Args:
        weights: parameters and buffers.
        optimizer: the optimizers' state.
        work: what there is beside weights, gradients and state at the highest use.
        flops: floating-point operations of the optimizers' matrix products.
    """

    weights: int
    optimizer: int
    work: int
    flops: int


class CostByRows:
    """The cost of a step as it grows with the rows of a micro-batch: on a straight line through two of its points.

    Args:
        run: simulates a step with so many rows.
        rows: of the first point; the second has twice as many. Up to it the cost is simulated as it is.
    """

    def __init__(self, run: Callable[[int], StepCost], rows: int) -> None:
        self.rows = rows
        self._run = cache(run)

    def at(self, rows: int) -> StepCost:
        """The cost of a step with so many rows in a micro-batch."""
        if rows <= self.rows:
            return self._run(rows)
        low, high = asdict(self._run(self.rows)), asdict(self._run(2 * self.rows))
        steps = (rows - self.rows) / self.rows
        return StepCost(**{name: round(low[name] + steps * (high[name] - low[name])) for name in low})

    def growing_activations(self, rows: int) -> int:
        """Bytes of the activations that grow with the rows."""
        low, high = self._run(self.rows), self._run(2 * self.rows)
        return (high.activations - low.activations) * rows // self.rows


def simulate_update(model: nn.Module, config: TrainConfig, precision: str, *, device: str = "cpu") -> UpdateCost:
    """The cost of an update in a training that is under way; nothing is computed, and the model stays as it is.

    Args:
        model, config, precision, device: as for `simulate_step`.
    """
    average = None if config.average is None else config.average.decay
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    with _simulation(model, precision, device) as (shadow, ledger):
        weights = ledger.live
        optimizers = build_optimizers(shadow, config.optimizer, dtype, average=average)
        parameters = [parameter for parameter in shadow.parameters() if parameter.requires_grad]
        # The first one makes the optimizers' state.
        for _ in range(2):
            before = ledger.live, ledger.flops
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            ledger.peak = held = ledger.live
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return UpdateCost(weights, before[0] - weights, ledger.peak - held, ledger.flops - before[1])


def simulate_step(
    model: nn.Module,
    objective: Objective,
    batch: Any,
    config: TrainConfig,
    precision: str,
    update: UpdateCost,
    *,
    accumulates: bool,
    device: str = "cpu",
) -> StepCost:
    """The cost of a step; nothing is computed, and the model stays as it is.

    Args:
        model: what is trained, on any device; its numbers are not looked at.
        objective: what is minimised.
        batch: a micro-batch, tensors in any structure, of which only the shapes matter.
        config: settings.
        precision: "fp32", "bf16" or "bf16-pure".
        update: the cost of its update, as `simulate_update` finds it.
        accumulates: whether a step has several micro-batches, so that gradients are there from the start.
        device: whose kernels are chosen. Those of "cuda" are, where torch has CUDA; elsewhere the CPU's forms for
            float16, which are the general ones, stand for them.
    """
    with _simulation(model, precision, device) as (shadow, ledger):
        recompute_activations(shadow, config)
        place = _place(device)
        inputs = tree_map_only(Tensor, lambda part: torch.empty(part.shape, dtype=part.dtype, device=place), batch)
        parameters = [parameter for parameter in shadow.parameters() if parameter.requires_grad]
        held = ledger.live
        ledger.start_over()
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(ledger.enter_gradient)
            if accumulates:
                # What the micro-batches before have left.
                parameter.grad = torch.empty_like(parameter)
                ledger.enter_gradient(parameter)
        context: AbstractContextManager[object] = nullcontext()
        if precision != "fp32":
            context = torch.autocast(place, torch.bfloat16 if place == device else torch.float16)
        with context:
            output = objective.loss(shadow, inputs)
        output.sum.backward()
        del output
        early = ledger.gradients_at_peak
        return StepCost(
            weights=update.weights,
            gradients=ledger.live - held,
            early_gradients=early,
            optimizer=update.optimizer,
            activations=ledger.peak - held - early,
            work=update.work,
            pass_flops=ledger.flops,
            update_flops=update.flops,
        )


def _place(device: str) -> str:
    """Where tensors are said to be: torch without CUDA knows of none there."""
    return device if device == "cpu" or torch.cuda.is_available() else "cpu"


@contextmanager
def _simulation(model: nn.Module, precision: str, device: str) -> Iterator[tuple[nn.Module, _Ledger]]:
    """A model of the same shapes that holds nothing, and what counts; the model's weights are in it already."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shadow = _shadow(model, mode, _place(device)).train()
    if precision == "bf16-pure":
        narrow_trained_weights(shadow)
    with mode, _Ledger() as ledger, warnings.catch_warnings():
        # Whether two tensors without numbers share memory is asked by address, which they have none of.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        for tensor in (*shadow.parameters(), *shadow.buffers()):
            ledger.enter(tensor)
        yield shadow, ledger


def _shadow(model: nn.Module, mode: FakeTensorMode, device: str) -> nn.Module:
    """The same modules around tensors of the same shapes that hold nothing; what is shared stays shared."""
    memo: dict[int, Any] = {}

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    with mode:
        for parameter in model.parameters():
            memo[id(parameter)] = nn.Parameter(empty(parameter), requires_grad=parameter.requires_grad)
        for buffer in model.buffers():
            memo[id(buffer)] = empty(buffer)
    return copy.deepcopy(model, memo)


class _Ledger(TorchDispatchMode):
    """Counts bytes of storages that are alive, and matrix-product FLOPs, while operations run.

    Where code asks a tensor for a number, it gets one that stands for it: true, one, and for the ends of sorted runs
    what they are if all runs are of one length.

    Attributes:
        live: bytes now.
        peak: most bytes since `start_over`.
        gradients_at_peak: bytes of gradients at that moment.
        flops: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self.gradients_at_peak = self._gradients = 0
        self._with_gradient: set[int] = set()
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._ends: weakref.WeakKeyDictionary[torch.UntypedStorage, tuple[int, int]] = weakref.WeakKeyDictionary()

    def start_over(self) -> None:
        """Forget the peak and the gradients of the step before."""
        self.peak = self.gradients_at_peak = self._gradients = 0
        self._with_gradient.clear()

    def enter(self, tensor: Tensor) -> None:
        """Count a tensor's storage, until it is gone."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return

        def leave(_: object) -> None:
            self.live -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, leave)
        self.live += size
        if self.live > self.peak:
            self.peak, self.gradients_at_peak = self.live, self._gradients

    def enter_gradient(self, parameter: Tensor) -> None:
        """Count what a parameter's gradient takes among the gradients."""
        if id(parameter) not in self._with_gradient and parameter.grad is not None:
            self._with_gradient.add(id(parameter))
            self._gradients += parameter.grad.nbytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and take its results in."""
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return self._number(args[0])
        found = func(*args, **kwargs)
        for result in tree_leaves(found):
            if isinstance(result, Tensor):
                self.enter(result)
        if func._overloadpacket is aten.searchsorted:
            self._ends[found.untyped_storage()] = (args[0].shape[-1], found.numel())
        self.flops += _flops(func._overloadpacket, args, kwargs, found)
        return found

    def _number(self, tensor: Tensor) -> bool | int | float:
        ends = self._ends.get(tensor.untyped_storage())
        if ends is not None:
            values, runs = ends
            return values * (int(tensor.storage_offset()) + 1) // runs
        if tensor.dtype == torch.bool:
            return True
        return 1.0 if tensor.is_floating_point() else 1


_ATTENTION = {
    "_scaled_dot_product_flash_attention": 0,
    "_scaled_dot_product_flash_attention_for_cpu": 0,
    "_scaled_dot_product_efficient_attention": 0,
    "_scaled_dot_product_cudnn_attention": 0,
    "_scaled_dot_product_flash_attention_backward": 1,
    "_scaled_dot_product_flash_attention_for_cpu_backward": 1,
    "_scaled_dot_product_efficient_attention_backward": 1,
    "_scaled_dot_product_cudnn_attention_backward": 1,
}
"""Attention kernels, and how many tensors come before queries, keys and values."""


def _flops(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any) -> int:
    """Floating-point operations of matrix products.

    Attention counts over all pairs of tokens, causal or not, and its backward pass as twice its forward pass.
    """
    name = packet.__name__
    first = _ATTENTION.get(name)
    if first is not None:
        query, key, value = (part.shape for part in args[first : first + 3])
        # Shared key heads are repeated in what is computed.
        key, value = ((*query[:2], *shape[2:]) for shape in (key, value))
        return int(sdpa_flop_count(query, key, value)) * (1 + first)
    if name == "short_attention":
        batch, length, heads, width = args[0].shape
        return 4 * int(batch * heads * length * length * width)
    if name == "short_attention_backward":
        batch, heads, length, width = args[1][0].shape
        return 8 * int(batch * heads * length * length * width)
    count = flop_registry.get(packet)
    return 0 if count is None else int(count(*args, **kwargs, out_val=found))
