"""Getting tasks done: what is there already is taken, the rest is given to an executor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol, Self

from llmkit.console import progress
from llmkit.data.execution.cache import Cache
from llmkit.data.execution.config import ExecutorConfig
from llmkit.data.execution.tasks import Result, Task

if TYPE_CHECKING:
    from llmkit.data.execution.sharing import Share


class Executor(Protocol):
    """Makes results of tasks in a cache."""

    def execute(self, tasks: Sequence[Task], cache: Cache) -> Iterator[Task]:
        """Make each, in any order, giving each task when its result is in the cache.

        Raises:
            LLMKitError: what a task's function raises, or a process that died.
        """
        ...

    def close(self) -> None:
        """Stop whatever was started."""
        ...


class Engine:
    """A cache and an executor; a context manager that stops what the executor has started.

    Args:
        cache: where results are.
        executor: who makes those that are not there.
        name: of the stage, for progress.
        share: what other processes of a job scheduler do of it; None for one that does everything.
    """

    def __init__(self, cache: Cache, executor: Executor, name: str, share: Share | None = None) -> None:
        self.cache = cache
        self.used: set[str] = set()
        """Keys of all results asked for."""
        self.made: Counter[str] = Counter()
        """How many tasks of each name had to be done, here or by others."""
        self._executor = executor
        self._share = share
        self.name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.close()

    def result(self, key: str) -> Result:
        """A result that has been asked for."""
        found = self.cache.get(key)
        if found is None:
            if self._share is not None:
                self._share.check()
            raise OSError(f"{self.cache.place(key)} has gone while it was in use")
        return found

    def run(self, tasks: Sequence[Task], what: str = "") -> list[Result]:
        """The results of tasks, in their order; those that are not there are made first.

        Args:
            tasks: none of them reads the result of another.
            what: what is done, for the line of progress; by default the name of the first task.
        """
        missing = {task.key: task for task in tasks if self.cache.get(task.key) is None}
        self.used.update(task.key for task in tasks)
        if missing or self._share is not None:
            # The progress of one task is that it is done, which the next one says.
            label = f"{self.name}: {what or tasks[0].name}"
            shown = progress(label, len(tasks), len(tasks) - len(missing)) if len(missing) > 1 else nullcontext()
            with shown as bar:
                for task in self._execute(tasks, missing):
                    self.made[task.name] += 1
                    if bar is not None:
                        bar.advance(1, note=task.label)
        return [self.result(task.key) for task in tasks]

    def wait_for_others(self) -> None:
        """Return when no process with which the tasks are shared reads results any more."""
        if self._share is not None:
            self._share.wait_for_others()

    def _execute(self, tasks: Sequence[Task], missing: Mapping[str, Task]) -> Iterator[Task]:
        if self._share is not None:
            return self._share.execute(self._executor, tasks, self.cache)
        return self._executor.execute(list(missing.values()), self.cache)


@contextmanager
def open_engine(
    config: ExecutorConfig, cache: Cache, name: str, shard: tuple[int, int] | None = None
) -> Iterator[Engine]:
    """An engine as the settings ask for it; what it has started is stopped at the end.

    Args:
        config: who does the work.
        cache: where results are.
        name: of the stage, for progress.
        shard: number, from 1, and count of the processes that a job scheduler has started to share the work; None for
            one alone.
    """
    from llmkit.data.execution.executors import open_executor
    from llmkit.data.execution.sharing import Share

    share = None if shard is None else Share(*shard, cache.root, name)
    with share or nullcontext(), Engine(cache, open_executor(config), name, share) as engine:
        yield engine
