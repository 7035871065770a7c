"""Work on whole matrices by ranks that have parts of them, and the norm of gradients in parts, on three ranks."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement

from llmkit.train.parallel.config import ParallelConfig
from llmkit.train.parallel.gradients import counted_square
from llmkit.train.parallel.matrices import matrices_like
from llmkit.train.parallel.whole import full_tensors, keep_part
from llmkit.train.world import open_world

RANKS = 3
# Rows that three ranks do not divide evenly, fewer rows than ranks, columns in parts, experts in parts.
LAYOUTS: list[tuple[tuple[int, ...], Placement]] = [
    ((7, 4), Shard(0)),
    ((2, 5), Shard(0)),
    ((6, 5), Shard(1)),
    ((4, 3, 5), Shard(0)),
    ((3, 4), Replicate()),
]


def _mixed(whole: Tensor) -> Tensor:
    """Every number of the result depends on every number of its matrix."""
    size = torch.linalg.det(whole @ whole.mT + torch.eye(whole.shape[-2]))
    return whole.cumsum(-1) * size[..., None, None]


def _rank(rank: int, place: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=RANKS)
    world = open_world(ParallelConfig(shard=RANKS), "cpu")
    assert world.mesh is not None
    mesh, draw = world.mesh["shard"], torch.Generator().manual_seed(0)
    gradients: list[Tensor] = [torch.full((5,), 2.0)]
    square = 5 * 4.0
    for shape, placement in LAYOUTS:
        wholes = [torch.randn(shape, generator=draw) for _ in range(5)]
        parts = [distribute_tensor(whole, mesh, [placement]) for whole in wholes]
        matrices = matrices_like(parts[0])
        done = matrices.apply([part.to_local() for part in parts], _mixed)
        norms = matrices.norms(torch.stack([part.to_local() for part in parts]))
        for index, whole in enumerate(wholes):
            expected = distribute_tensor(_mixed(whole[None])[0], mesh, [placement]).to_local()
            torch.testing.assert_close(done[index], expected, rtol=1e-5, atol=1e-5)
            # Of stacks, each rank has some matrices whole; of a matrix, all ranks have the one norm.
            kept = placement if len(shape) == 3 else Replicate()
            norm = distribute_tensor(torch.linalg.matrix_norm(whole, keepdim=True), mesh, [kept]).to_local()
            torch.testing.assert_close(norms[index], norm, rtol=1e-5, atol=1e-5)
        gradients += parts
        square += sum(float(whole.double().square().sum()) for whole in wholes)
        target = torch.zeros_like(parts[0])
        keep_part(target, wholes[0])
        whole = full_tensors({"one": target}, world)
        assert (not whole) if rank else torch.equal(whole["one"], wholes[0])
    counted = sum(share for (share,) in world.gather([counted_square(gradients, world)]))
    assert math.isclose(counted, square, rel_tol=1e-6)
    assert world.collect({"rank": rank}) == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
    assert world.any(rank == 2)
    dist.destroy_process_group()


def test_parts_of_matrices(tmp_path: Path) -> None:
    run_ranks(partial(_rank, place=tmp_path), RANKS)
