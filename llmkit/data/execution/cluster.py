"""Tasks on a Ray cluster: each is one call of a remote function, whose result goes into the folder that all share."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmkit.data.execution.cache import Cache
from llmkit.data.execution.tasks import Task
from llmkit.data.execution.worker import ONE_THREAD, answer, raise_error
from llmkit.errors import DataError, MissingDependencyError

_ATTEMPTS = 2
_AHEAD = 2
"""Tasks that wait on the cluster for each one that is done there, so that no processor has to wait for this process."""


class RayCluster:
    """Does tasks on a Ray cluster, which it connects to when there is something to do.

    A program that has connected to a cluster before keeps its connection; any other is closed at the end, and a cluster
    that was started here is stopped.

    Args:
        address: of the cluster; None to start one on this machine.
        processes: tasks done at the same time; None for as many as the cluster has processors.

    Raises:
        MissingDependencyError: Ray is not installed.
    """

    def __init__(self, address: str | None, processes: int | None) -> None:
        try:
            import ray
        except ImportError:
            raise MissingDependencyError(
                "the executor `ray` needs Ray, which is not installed.", hint="pip install 'llmkit[ray]'"
            ) from None
        self._ray: Any = ray
        self._address = address
        self._processes = processes
        self._connected = False

    def execute(self, tasks: Sequence[Task], cache: Cache) -> Iterator[Task]:
        """Give the cluster as many tasks as it has room for.

        Raises:
            LLMKitError: what a task's function raises there, a cluster that cannot be had, a worker that died twice
                over one task, or a machine that writes its results elsewhere.
            RuntimeError: any other exception there, with its traceback.
        """
        self._connect()
        environment = {"env_vars": {**ONE_THREAD, "PYTHONPATH": _path()}}
        remote = self._ray.remote(_do).options(num_cpus=1, max_retries=_ATTEMPTS - 1, runtime_env=environment)
        waiting = deque(tasks)
        running: dict[Any, Task] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._room():
                    task = waiting.popleft()
                    running[remote.remote(json.dumps({"cache": str(cache.root), "task": task.as_json()}))] = task
                (ready,), _ = self._ray.wait(list(running), num_returns=1)
                task = running.pop(ready)
                raise_error(json.loads(self._get(ready, task)))
                if cache.get(task.key) is None:
                    raise _not_shared(cache)
                yield task
        finally:
            for reference in running:
                self._ray.cancel(reference, force=True)

    def close(self) -> None:
        """Close the connection that was opened here."""
        if self._connected:
            self._ray.shutdown()
            self._connected = False

    def _connect(self) -> None:
        ray = self._ray
        if ray.is_initialized():
            return
        # Else Ray puts a `print` of its own into `builtins`, for good.
        os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            # What Ray tells its makers about each cluster that is started is nobody's wish here.
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            processes = self._processes or len(os.sched_getaffinity(0))
            options.update(address="local", num_cpus=processes, include_dashboard=False)
        else:
            options["address"] = self._address
        try:
            ray.init(**options)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            raise DataError(
                f"the Ray cluster at {self._address or 'this machine'} cannot be had: {reason}.",
                hint="`ray status` on its head node tells whether it runs.",
            ) from None
        self._connected = True

    def _room(self) -> int:
        """How many tasks the cluster is given at once; machines may come and go."""
        if self._processes is not None:
            return self._processes
        return _AHEAD * max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def _get(self, reference: Any, task: Task) -> str:
        try:
            found: str = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise DataError(
                f"the task `{task.name}` failed on the Ray cluster, {_ATTEMPTS} times ({task.label}): {reason}",
                hint="Where memory was too small, ask for fewer processes: `executor.processes`.",
            ) from None
        return found


def _path() -> str:
    """Where this process finds modules that are not installed: settings may name some ("module:function")."""
    installed = (sys.prefix, sys.base_prefix)
    own = [place for place in sys.path if place and not any(Path(place).is_relative_to(root) for root in installed)]
    return os.pathsep.join(own)


def _do(message: str) -> str:
    return json.dumps(answer(json.loads(message)))


def _not_shared(cache: Cache) -> DataError:
    return DataError(
        "a machine of the Ray cluster has done a task, and its result is not here.",
        where=str(cache.root),
        hint="Set `work.folder` to a folder that all machines of the cluster share.",
    )
