"""The ranks of a training, where each stands in the mesh, and what all of them agree on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llmkit.train.contract import Part
from llmkit.train.parallel.config import MeshSizes, ParallelConfig

ONE = MeshSizes()


@dataclass(frozen=True)
class World:
    """One rank among those of a training; by itself, a training of one process.

    What ranks agree on goes through the processors' memory (gloo) on every kind of device, and comes out to the bit
    alike on all of them.

    Args:
        rank, size: its number, and how many there are.
        sizes: of the mesh.
        mesh: with the dimensions "replicate", "shard", "context" and "tensor", all of them there; None when alone.
        place: the rank's coordinate in each dimension.
    """

    rank: int = 0
    size: int = 1
    sizes: MeshSizes = ONE
    mesh: DeviceMesh | None = None
    place: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that speaks and writes."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which part of the rows of a batch the rank goes through; ranks that share a sequence have one in common."""
        return self.place.get("replicate", 0) * self.sizes.shard + self.place.get("shard", 0)

    @property
    def data_ranks(self) -> int:
        """Parts that the rows of a batch are divided into."""
        return self.sizes.data

    @property
    def part(self) -> Part:
        """The rank's rows."""
        return Part(self.data_rank, self.data_ranks)

    @property
    def stream(self) -> tuple[int, ...]:
        """What seeds of random numbers in the model add to the step's.

        Every rank's are its own: those that share matrix products drop features of different heads and tokens.
        """
        return () if self.mesh is None else (self.data_rank, self.place["context"], self.place["tensor"])

    def distinct(self, shares: list[list[float]]) -> list[list[float]]:
        """Of what each rank gave, one of every tensor group, whose ranks have the same tokens."""
        return shares[:: self.sizes.tensor]

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Each rank's numbers, by rank: as many from every one."""
        if self.mesh is None:
            return [list(values)]
        mine = torch.tensor(list(values), dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine)
        return [each.tolist() for each in found]

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over the ranks that go through different tokens.

        Ranks that share matrix products have the same numbers, which are counted once.
        """
        if self.mesh is None:
            return list(values)
        return [sum(each) for each in zip(*self.distinct(self.gather(values)), strict=True)]

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return any(value for (value,) in self.gather([float(flag)]))

    def collect(self, value: Any) -> list[Any]:
        """Each rank's JSON value, by rank."""
        if self.mesh is None:
            return [value]
        text = json.dumps(value).encode()
        longest = int(max(length for (length,) in self.gather([len(text)])))
        mine = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine)
        return [json.loads(bytes(each.numpy())) for each in found]

    def share(self, value: Any = None) -> Any:
        """What rank 0 gives: a JSON value, on every rank. What the others give is not looked at."""
        if self.mesh is None:
            return value
        text = bytearray(json.dumps(value).encode() if self.is_main else b"")
        length = torch.tensor([len(text)])
        dist.broadcast(length, 0)
        content = torch.frombuffer(text, dtype=torch.uint8) if text else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(content, 0)
        return json.loads(bytes(content.numpy()))

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.gather([0.0])


ALONE = World()


def add_up(rows: Sequence[Sequence[float]]) -> list[float]:
    """The sum of each number over what the ranks have gathered, those that share matrix products included."""
    return [sum(column) for column in zip(*rows, strict=True)]


def open_world(parallel: ParallelConfig, device: str, where: str | None = None) -> World:
    """The ranks of the process group that this process has joined, as a mesh; of one process where it has joined none.

    Args:
        parallel: the mesh's shape.
        device: "cpu" or "cuda".
        where: place of the settings, for messages.

    Raises:
        ConfigError: another number of ranks was started than the mesh has.
    """
    size = dist.get_world_size() if dist.is_initialized() else 1
    sizes = parallel.sizes(size, where)
    if size == 1:
        return ALONE
    mesh = init_device_mesh(device, tuple(sizes), mesh_dim_names=sizes._fields)
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    place = dict(zip(sizes._fields, coordinate, strict=True))
    return World(dist.get_rank(), size, sizes, mesh, place)
