"""Getting tasks done: what is there already is taken, the rest is given to an executor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Protocol, Self

from llmkit.console import progress
from llmkit.data.execution.cache import Cache
from llmkit.data.execution.config import ExecutorConfig
from llmkit.data.execution.tasks import Result, Task


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
    """

    def __init__(self, cache: Cache, executor: Executor, name: str) -> None:
        self.cache = cache
        self.used: set[str] = set()
        """Keys of all results asked for."""
        self.made: Counter[str] = Counter()
        """How many tasks of each name had to be done."""
        self._executor = executor
        self._name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.close()

    def result(self, key: str) -> Result:
        """A result that has been asked for."""
        found = self.cache.get(key)
        if found is None:
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
        if missing:
            # The progress of one task is that it is done, which the next one says.
            label = f"{self._name}: {what or tasks[0].name}"
            shown = progress(label, len(tasks), len(tasks) - len(missing)) if len(missing) > 1 else nullcontext()
            with shown as bar:
                for task in self._executor.execute(list(missing.values()), self.cache):
                    self.made[task.name] += 1
                    if bar is not None:
                        bar.advance(1, note=task.label)
        return [self.result(task.key) for task in tasks]


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

    with Engine(cache, open_executor(config, shard), name) as engine:
        yield engine
