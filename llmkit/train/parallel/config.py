"""How the ranks that torchrun starts share the work. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from llmkit.config.base import Config, Finding
from llmkit.errors import ConfigError

Ranks = Annotated[int, Field(ge=1)]


class MeshSizes(NamedTuple):
    """Ranks along each dimension of the mesh, in the mesh's order; the last one is of neighbouring ranks."""

    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.replicate * self.shard * self.context * self.tensor

    @property
    def data(self) -> int:
        """Parts that the rows of a batch are divided into."""
        return self.replicate * self.shard


class ParallelConfig(Config):
    """How the ranks that torchrun starts share the work; without torchrun there is one, and nothing to share.

    The product of the four numbers is the number of ranks.
    """

    replicate: Literal["auto"] | Ranks = "auto"
    """Groups of ranks that hold the whole model each and go through different rows (DDP). auto: what the other three
    leave of the ranks that are started."""
    shard: Ranks = 1
    """Ranks that share the weights, gradients and optimizer state of one model among them and go through different
    rows (FSDP2); with several groups of them, HSDP. Best not more than the GPUs of a machine where it fits them."""
    tensor: Ranks = 1
    """Ranks that share each matrix product (tensor parallelism); GPUs of one machine."""
    context: Ranks = 1
    """Ranks that share the tokens of each sequence (context parallelism), for long sequences."""
    reshard: bool = True
    """Free the weights of a block after its forward pass and gather them again for the backward pass. Without it
    training on shards communicates a third less and holds the whole model's weights."""

    def sizes(self, ranks: int, where: str | None = None) -> MeshSizes:
        """The mesh of a number of ranks.

        Raises:
            ConfigError: the numbers do not multiply to it.
        """
        others = self.shard * self.context * self.tensor
        replicate = max(1, ranks // others) if self.replicate == "auto" else self.replicate
        sizes = MeshSizes(replicate, self.shard, self.context, self.tensor)
        if sizes.ranks != ranks:
            started = "one process was" if ranks == 1 else f"{ranks} ranks were"
            needs = f"a multiple of {others}" if self.replicate == "auto" else str(sizes.ranks)
            raise ConfigError(
                f"`parallel` is for {needs} ranks, and {started} started.",
                where=where,
                hint=f"Start it by `torchrun --nproc-per-node {sizes.ranks} -m llmkit ...`, or change `parallel`.",
            )
        return sizes

    @property
    def known_data_ranks(self) -> int:
        """A number that the number of data ranks is a multiple of, whatever is started."""
        return self.shard * (1 if self.replicate == "auto" else self.replicate)

    @property
    def fewest_ranks(self) -> int:
        """The smallest number of ranks that these settings are for."""
        return self.known_data_ranks * self.context * self.tensor

    def check(self, batch_size: int) -> Iterator[Finding]:
        """Whether a batch can be divided, as far as that is known before ranks are started."""
        yield from indivisible(batch_size, self.known_data_ranks)


def indivisible(batch_size: int, data_ranks: int) -> Iterator[Finding]:
    """A finding where a batch cannot be divided evenly, with the nearest sizes that can."""
    if batch_size % data_ranks:
        below = batch_size // data_ranks * data_ranks
        fitting = [str(size) for size in (below, below + data_ranks) if size]
        yield Finding(
            f"batch_size {batch_size} cannot be divided evenly among {data_ranks} ranks.",
            key="batch_size",
            hint=f"The nearest that can: {' or '.join(fitting)}.",
        )
