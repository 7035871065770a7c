"""Counts that must add up: each step keeps or drops what came in, and the next one gets what it kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

READ = "read"
"""Name of the first step, which gets every record of a source."""


@dataclass
class StepCounts:
    """What went through one step; bytes are UTF-8 bytes of text, those of a broken record being its copy's."""

    documents_in: int = 0
    kept: int = 0
    changed: int = 0
    bytes_in: int = 0
    bytes_kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)

    def keep(self, before: int, after: int, changed: bool) -> None:
        """Count a document that is kept, with its bytes before and after the step."""
        self.documents_in += 1
        self.kept += 1
        self.changed += changed
        self.bytes_in += before
        self.bytes_kept += after

    def drop(self, size: int, reason: str) -> None:
        """Count a document that is dropped."""
        self.documents_in += 1
        self.bytes_in += size
        self.dropped[reason] += 1

    def quarantine(self, size: int, reason: str) -> None:
        """Count a record that could not be read."""
        self.documents_in += 1
        self.bytes_in += size
        self.quarantined[reason] += 1

    def add(self, other: StepCounts) -> None:
        """Add the counts of the same step over something else."""
        self.documents_in += other.documents_in
        self.kept += other.kept
        self.changed += other.changed
        self.bytes_in += other.bytes_in
        self.bytes_kept += other.bytes_kept
        self.dropped += other.dropped
        self.quarantined += other.quarantined

    def as_dict(self) -> dict[str, Any]:
        """For the report and for the facts of tasks."""
        return {
            "in": self.documents_in,
            "kept": self.kept,
            "changed": self.changed,
            "dropped": dict(sorted(self.dropped.items())),
            "quarantined": dict(sorted(self.quarantined.items())),
            "bytes_in": self.bytes_in,
            "bytes_kept": self.bytes_kept,
        }

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """The counts of `as_dict`."""
        return cls(
            value["in"],
            value["kept"],
            value["changed"],
            value["bytes_in"],
            value["bytes_kept"],
            Counter(value["dropped"]),
            Counter(value["quarantined"]),
        )


class Counts:
    """Counts of every step by source, added up as results of tasks come.

    Args:
        sources: names of the sources.
        steps: names of the steps in their order, reading first.
    """

    def __init__(self, sources: Iterable[str], steps: Iterable[str]) -> None:
        names = list(steps)
        self._steps = {source: {name: StepCounts() for name in names} for source in sources}

    def add(self, source: str, steps: Mapping[str, Mapping[str, Any]]) -> None:
        """Add counts, as `StepCounts.as_dict`, of some of the steps over a part of a source."""
        for name, counts in steps.items():
            self._steps[source][name].add(StepCounts.of(counts))

    def report(self) -> dict[str, Any]:
        """Counts for each source and over all: totals, and each step's own."""
        totals: dict[str, StepCounts] = {}
        for steps in self._steps.values():
            for name, counts in steps.items():
                totals.setdefault(name, StepCounts()).add(counts)
        return {
            "total": _section(totals),
            "sources": {source: _section(steps) for source, steps in self._steps.items()},
        }


def _section(steps: Mapping[str, StepCounts]) -> dict[str, Any]:
    every = list(steps.values())
    dropped: Counter[str] = Counter()
    for before, counts in zip([None, *every], every, strict=False):
        if before is not None and (before.kept, before.bytes_kept) != (counts.documents_in, counts.bytes_in):
            raise AssertionError(f"{before} and {counts} do not fit together")
        gone = counts.dropped.total() + counts.quarantined.total()
        if counts.documents_in != counts.kept + gone:
            raise AssertionError(f"{counts} does not add up")
        dropped += counts.dropped
    return {
        "in": every[0].documents_in,
        "kept": every[-1].kept,
        "dropped": dict(sorted(dropped.items())),
        "quarantined": dict(sorted(every[0].quarantined.items())),
        "bytes_in": every[0].bytes_in,
        "bytes_kept": every[-1].bytes_kept,
        "steps": {name: counts.as_dict() for name, counts in steps.items()},
    }
