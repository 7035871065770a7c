"""Ranks that go through different rows: each with the whole model (DDP), or with a part of its weights (FSDP2).

Gradients are summed over the ranks in the last micro-batch of a step, while its backward pass goes on, and nowhere
else. They are never averaged: the loop divides by the weight of the whole batch.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from llmkit.errors import ConfigError
from llmkit.model.transformer import Transformer
from llmkit.train.blocks import repeated_blocks
from llmkit.train.contract import LossOutput, Objective
from llmkit.train.world import World


def is_sharded(world: World) -> bool:
    """Whether FSDP2 brings the ranks together, and not DDP.

    With tensor parallelism it does even where `shard` is 1: DDP knows no distributed weights.
    """
    sizes = world.sizes
    return sizes.shard > 1 or (sizes.tensor > 1 and sizes.replicate * sizes.context > 1)


def shard(model: nn.Module, world: World, *, dtype: torch.dtype, reshard: bool, where: str | None = None) -> None:
    """Leave each rank a part of every weight, in place: FSDP2 with a unit for each block and one for the rest.

    Weights are kept in the precision that they have. Those of blocks are gathered in `dtype`, the rest as they are: the
    residual stream has the precision of the token vectors, as on one rank. Gradients are summed in float32 at least.

    Args:
        model: on its device or on "meta"; tensor parallelism, if any, has been applied.
        world: the ranks.
        dtype: of matrix products.
        reshard: whether a block's weights are freed between its forward and its backward pass.
        where: place of the settings, for messages.

    Raises:
        ConfigError: the model is more than a transformer.
    """
    if not is_sharded(world):
        return
    if not isinstance(model, Transformer):
        raise ConfigError(
            "only a language model by itself can be sharded, not one with a second model beside it.",
            where=where,
            hint="Leave `parallel` at its default: each rank then has the whole model.",
        )
    mesh = _mesh(world)
    narrow = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in repeated_blocks(model):
        weights = {parameter.dtype for parameter in block.parameters() if parameter.requires_grad}
        policy = narrow if weights == {torch.float32} and dtype != torch.float32 else plain
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    # The output projection is read after the forward pass, by the fused loss.
    fully_shard(model, mesh=mesh, mp_policy=plain, reshard_after_forward=False)
    _make_forward(model, "hidden")
    for module in _units(model):
        module.set_gradient_divide_factor(1.0)
        # gloo knows sums alone.
        module.set_force_sum_reduction_for_comms(world.mesh is not None and world.mesh.device_type == "cpu")


def _mesh(world: World) -> DeviceMesh:
    """The ranks that a tensor group's weights are divided among, and beside them those that have the same part."""
    assert world.mesh is not None
    name = "shard"
    if world.sizes.context > 1:
        name = "shard_context"
        world.mesh["shard", "context"]._flatten(name)
    return world.mesh[name] if world.sizes.replicate == 1 else world.mesh["replicate", name]


def _units(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def forget_gathered(model: nn.Module) -> None:
    """Let go of the weights that forward passes without a backward pass have gathered, before they are changed."""
    for unit in _units(model):
        unit.reshard()


def _make_forward(model: Transformer, name: str) -> None:
    """Have a method gather the weights as `forward` does, where it is not called by that."""
    plain = getattr(model, name)
    register_fsdp_forward_method(model, name)
    gathering = getattr(model, name)
    inside = False

    def enter(*_: Any) -> None:
        nonlocal inside
        inside = True

    def leave(*_: Any) -> None:
        nonlocal inside
        inside = False

    def method(*args: Any, **kwargs: Any) -> Any:
        return (plain if inside else gathering)(*args, **kwargs)

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)
    setattr(model, name, method)


class Passes:
    """The passes of one rank by itself.

    Args:
        model: what is trained.
        objective: what is minimised.
    """

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        self.model, self.objective = model, objective

    def loss(self, batch: Any) -> LossOutput:
        """Loss of a micro-batch, whose backward pass is up to the caller."""
        return self.objective.loss(self.model, batch)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """The context of forward and backward pass of a micro-batch; in the step's last one gradients are summed."""
        return nullcontext()


class _LossModule(nn.Module):
    """A model whose forward pass goes on to the loss."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Any) -> LossOutput:
        """Loss of a micro-batch."""
        return self.objective.loss(self.model, batch)


class ReplicatedPasses(Passes):
    """The passes of ranks that have the whole model each."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__(model, objective)
        with warnings.catch_warnings():
            # Another name is recommended, which PyTorch before 2.13 does not know.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            # Weights are the same on all ranks as they are drawn or loaded.
            self.wrapped = DistributedDataParallel(
                _LossModule(model, objective), broadcast_buffers=False, gradient_as_bucket_view=True, init_sync=False
            )
        self.wrapped.register_comm_hook(None, _sum)

    def loss(self, batch: Any) -> LossOutput:
        """Loss of a micro-batch."""
        return cast(LossOutput, self.wrapped(batch))

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """Without communication but in the last one."""
        return nullcontext() if last else cast(AbstractContextManager[object], self.wrapped.no_sync())


def _sum(_: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """The sum of a bucket of gradients over the ranks, where DDP by itself takes the mean."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    future: torch.futures.Future[Tensor] = work.get_future().then(_first)
    return future


# DDP compares the annotations, and does not know those that are text.
_sum.__annotations__ = {"bucket": GradBucket, "return": torch.futures.Future[Tensor]}


def _first(future: torch.futures.Future[list[Tensor]]) -> Tensor:
    return future.value()[0]


class ShardedPasses(Passes):
    """The passes of ranks that have parts of the weights."""

    def loss(self, batch: Any) -> LossOutput:
        """Loss of a micro-batch."""
        return self.objective.loss(self.model, batch)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """Gradients stay whole on each rank until the last one."""
        root = cast(FSDPModule, self.model)
        root.set_requires_gradient_sync(last)
        root.set_is_last_backward(last)
        return nullcontext()


def make_passes(model: nn.Module, objective: Objective, world: World) -> Passes:
    """The passes that fit the mesh; the model is on its device, and sharded where it is to be."""
    if is_sharded(world):
        return ShardedPasses(model, objective)
    if world.sizes.replicate * world.sizes.context > 1:
        return ReplicatedPasses(model, objective)
    return Passes(model, objective)
