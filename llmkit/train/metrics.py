"""Numbers of a run: averages over the steps between two lines, and `metrics.jsonl`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from llmkit.store.files import write_text_atomic
from llmkit.train.contract import Number
from llmkit.train.world import World

FILE = "metrics.jsonl"
OF_THE_MACHINE = frozenset(
    {"seconds", "seconds_left", "data_seconds", "tokens_per_second", "utilization", "memory_bytes"}
)
"""What a line says of the machine and not of the training: it is different in every run."""


class Window:
    """Weighted averages of named values over the steps since the last line.

    Values stay on their device until an average is asked for, so that adding one does not wait for the device.
    """

    def __init__(self, totals: Mapping[str, list[float]] | None = None) -> None:
        self._totals = {name: (total, weight) for name, (total, weight) in (totals or {}).items()}
        self._pending: list[tuple[str, Number, Number]] = []

    def add(self, name: str, total: Number, weight: Number = 1.0) -> None:
        """Count a sum over `weight` units."""
        values = [value.detach() if isinstance(value, Tensor) else value for value in (total, weight)]
        self._pending.append((name, values[0], values[1]))

    def totals(self) -> dict[str, list[float]]:
        """Sum and weight by name, as plain numbers: the state to go on from."""
        for name, total, weight in self._pending:
            before = self._totals.get(name, (0.0, 0.0))
            self._totals[name] = (before[0] + float(total), before[1] + float(weight))
        self._pending.clear()
        return {name: list(pair) for name, pair in self._totals.items()}

    def merge(self, world: World) -> None:
        """Bring the sums of all ranks together on rank 0; the others' start anew."""
        if world.mesh is None:
            return
        totals: dict[str, tuple[float, float]] = {}
        # Ranks of one tensor group have the same tokens.
        for share in world.collect(self.totals())[:: world.sizes.tensor]:
            for name, (total, weight) in share.items():
                before = totals.get(name, (0.0, 0.0))
                totals[name] = (before[0] + total, before[1] + weight)
        self._totals = totals if world.is_main else {}

    def averages(self) -> dict[str, float]:
        """Average by name; values of no weight are left out."""
        return {name: total / weight for name, (total, weight) in self.totals().items() if weight}


class Tracker(Protocol):
    """Where lines of metrics go besides the file."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line."""

    def close(self) -> None:
        """The run is over, or interrupted."""


class Lines(Protocol):
    """Where a run's lines go."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write one line."""

    def sync(self) -> None:
        """Make the lines written so far durable."""

    def close(self) -> None:
        """The run is over, or interrupted."""


class NoLines:
    """Nowhere: the lines are another rank's."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class MetricsLog:
    """`metrics.jsonl` and the trackers beside it: one line for each logged step and split.

    Args:
        directory: the stage's directory.
        step: the step gone on from; later lines, which an interrupted attempt wrote, are removed.
        trackers: further places for each line.
    """

    def __init__(self, directory: Path, step: int, trackers: list[Tracker]) -> None:
        self._path = directory / FILE
        self._trackers = trackers
        kept = [line for line in _whole_lines(self._path) if json.loads(line)["step"] <= step] if step else []
        write_text_atomic(self._path, "".join(kept))
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write one line."""
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(step, split, values)

    def sync(self) -> None:
        """Make the lines written so far durable."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and the trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def _whole_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]
