"""The processes that torchrun starts for one command: how they come together, wait for each other, and end together."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.console import say
from llmkit.errors import EXIT_FAULT, EXIT_INTERRUPTED, LLMKitError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_FAILED = "failed"
_LONGEST_NAP = 1.0


@dataclass(frozen=True)
class Launch:
    """What torchrun says to a process: its number, how many there are, and the same on its machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def launched() -> Launch | None:
    """What torchrun says; None where it did not start this process, or started it alone."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if any(name not in os.environ for name in names):
        return None
    found = Launch(*(int(os.environ[name]) for name in names))
    return found if found.size > 1 else None


class Ranks:
    """The processes of one command. Rank 0 does what is done once and tells the others what comes next.

    Args:
        launch: what torchrun says.
        store: which all of them read and write; it is torchrun's and outlives them.
    """

    def __init__(self, launch: Launch, store: Store) -> None:
        self.launch, self._store = launch, store
        self._told = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.launch.rank == 0

    def tell(self, value: Any) -> None:
        """Give the others a JSON value; they hear values in the order told."""
        self._store.set(f"told/{self._told}", json.dumps(value))
        self._told += 1

    def hear(self) -> Any:
        """The next value that rank 0 tells, however long it takes.

        Raises:
            PeerFailedError: another rank has failed meanwhile.
        """
        nap, key = 0.01, f"told/{self._told}"
        while not self._store.check([key]):
            if self._store.check([_FAILED]):
                raise PeerFailedError
            # Short naps and not one long wait: a signal is answered between them.
            time.sleep(nap)
            nap = min(2 * nap, _LONGEST_NAP)
        self._told += 1
        return json.loads(self._store.get(key))

    def claim(self, exit_code: int) -> tuple[bool, int]:
        """Say that this rank ends with an error.

        Returns:
            whether it is the first to say so, whose message people see; and the exit code of the first.
        """
        mine = f"{self.launch.rank} {exit_code}"
        first = self._store.compare_set(_FAILED, "", mine).decode()
        return first == mine, int(first.split()[1])


class PeerFailedError(Exception):
    """Another rank has failed, and says why."""


class LostRankError(LLMKitError):
    """Another rank has ended without a word."""

    exit_code = EXIT_FAULT

    def __init__(self) -> None:
        super().__init__(
            "another rank has ended without a word: killed, out of memory, or lost with its machine or network.",
            hint="Its own output and the machine's log may tell. The same command goes on from the last checkpoint.",
        )


def is_broken_connection(error: BaseException) -> bool:
    """Whether a collective has failed because a rank is gone."""
    import torch.distributed as dist

    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError)):
        return True
    # Gloo raises a RuntimeError that names the place in its source.
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)


@contextmanager
def together(launch: Launch) -> Iterator[Ranks]:
    """Join the process group, and end as the first rank that fails does.

    Within this context ranks other than 0 print nothing: they would say the same. An error shows on the rank that has
    it first; the others, whose collectives break off, end quietly with its exit code.

    Raises:
        SystemExit: another rank has failed first.
    """
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(iter(rendezvous("env://")))
    ranks = Ranks(launch, PrefixStore("llmkit", store))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(launch.local_rank % torch.cuda.device_count())
    torch.set_num_threads(max(1, processors() // launch.local_size))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=PrefixStore("llmkit/group", store),
        rank=launch.rank,
        world_size=launch.size,
        # Longer than any watchdog's patience, which ends a hang with the stacks of all ranks.
        timeout=timedelta(days=1),
    )
    try:
        with _quiet(unless=ranks.is_main):
            yield ranks
    except BaseException as error:
        first, exit_code = ranks.claim(_exit_code(error))
        if first:
            if launch.rank:
                say(f"rank {launch.rank}:")
            if is_broken_connection(error):
                raise LostRankError from error
            raise
        raise SystemExit(exit_code) from None
    dist.destroy_process_group()


@contextmanager
def _quiet(*, unless: bool) -> Iterator[None]:
    with ExitStack() as stack:
        if not unless:
            nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(redirect_stderr(nowhere))
            stack.enter_context(redirect_stdout(nowhere))
        yield


def _exit_code(error: BaseException) -> int:
    if isinstance(error, LLMKitError):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_FAULT
    return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_FAULT


def processors() -> int:
    """Processors that this process may use: those of the machine, or a container's share of them."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, -(-int(quota) // int(period))))


def on_all_ranks(work: Callable[[Ranks | None], None]) -> None:
    """Do a command's work on every rank that torchrun has started, or in this process alone."""
    launch = launched()
    if launch is None:
        work(None)
        return
    with together(launch) as ranks:
        work(ranks)


def on_one_rank(work: Callable[[], None]) -> None:
    """Do a command's work once, however many ranks torchrun has started: for commands that train nothing."""
    launch = launched()
    if launch is None or launch.rank == 0:
        work()
