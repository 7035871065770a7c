"""Executors by their settings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from llmkit.data.execution.cache import Cache
from llmkit.data.execution.config import ExecutorConfig
from llmkit.data.execution.engine import Executor
from llmkit.data.execution.tasks import Task

_LITTLE = 1 << 25
"""Bytes that one process goes through in about the time that others take to start."""


class InProcess:
    """Does one task after the other in this process."""

    def execute(self, tasks: Sequence[Task], cache: Cache) -> Iterator[Task]:
        """In their order."""
        for task in tasks:
            cache.make(task)
            yield task

    def close(self) -> None:
        """Nothing was started."""


class Automatic:
    """A pool of processes that is started when there is enough to do for it.

    Args:
        processes: tasks done at the same time; None for as many as there are processors, or one where there is little
            to do.
    """

    def __init__(self, processes: int | None) -> None:
        self._asked = processes
        self._pool: Executor | None = None

    def execute(self, tasks: Sequence[Task], cache: Cache) -> Iterator[Task]:
        """In this process, or in others."""
        yield from self._executor(tasks).execute(tasks, cache)

    def close(self) -> None:
        """Stop the processes."""
        if self._pool is not None:
            self._pool.close()

    def _executor(self, tasks: Sequence[Task]) -> Executor:
        from llmkit.data.execution.local import LocalPool

        processes = self._asked or len(os.sched_getaffinity(0))
        little = self._asked is None and self._pool is None and sum(task.cost for task in tasks) < _LITTLE
        if processes == 1 or (self._asked is None and len(tasks) == 1) or little:
            return InProcess()
        if self._pool is None:
            self._pool = LocalPool(processes)
        return self._pool


def open_executor(config: ExecutorConfig) -> Executor:
    """The executor that the settings ask for.

    Raises:
        MissingDependencyError: Ray is wanted and not installed.
    """
    processes = None if config.processes == "auto" else config.processes
    if config.kind == "ray":
        from llmkit.data.execution.cluster import RayCluster

        return RayCluster(config.address, processes)
    return Automatic(processes)
