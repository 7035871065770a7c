"""Running records through the cleaning steps, and the counts that must add up.

For every source and every step: `documents_in` = `kept` + the sum of `dropped`, and what one step keeps is what the
next one gets. The first step is called `read`: it gets every record of the source and drops the malformed ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import numpy as np

from llmkit.config.base import Config
from llmkit.data.cleaning.base import Dropped, Filter, Step, Verdict
from llmkit.data.cleaning.config import CleaningConfig
from llmkit.data.deduplication import ExactDuplicates
from llmkit.data.sources.base import Broken, Record
from llmkit.store.documents import Document, document_id

READ = "read"
MALFORMED = "malformed"
_STEPS = (("unicode", "cleaning.unicode:Unicode"),)
_FILTERS = (
    ("length", "cleaning.length:Length"),
    ("repetition", "cleaning.repetition:Repetition"),
)
"""Keys of `cleaning` in the order in which they run, and the class that does the work, made when it is asked for."""

_BATCH_DOCUMENTS = 512
_BATCH_CHARACTERS = 1 << 22


@dataclass(frozen=True, slots=True)
class DroppedDocument:
    """A document that was dropped, as it stood before the step that dropped it."""

    document: Document
    step: str
    reason: str
    detail: str


@dataclass
class StepCounts:
    """What went through one step; bytes are UTF-8 bytes of text, those of a malformed record being its copy's."""

    documents_in: int = 0
    kept: int = 0
    changed: int = 0
    bytes_in: int = 0
    bytes_kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

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

    def add(self, other: StepCounts) -> None:
        """Add the counts of the same step over another source."""
        self.documents_in += other.documents_in
        self.kept += other.kept
        self.changed += other.changed
        self.bytes_in += other.bytes_in
        self.bytes_kept += other.bytes_kept
        self.dropped += other.dropped

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "in": self.documents_in,
            "kept": self.kept,
            "changed": self.changed,
            "dropped": dict(sorted(self.dropped.items())),
            "bytes_in": self.bytes_in,
            "bytes_kept": self.bytes_kept,
        }


class Cleaning:
    """The steps, and counts of what has gone through them by source.

    Args:
        steps: the steps in their order; their names differ.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = tuple(steps)
        self.counts: dict[str, dict[str, StepCounts]] = {}

    def run(self, source: str, records: Iterable[Record]) -> Iterator[list[Document | DroppedDocument]]:
        """Clean the records of one source, batch by batch.

        Args:
            source: name of the source, under which the records are counted.
            records: what a reader gives.

        Yields:
            for each batch of records what became of it: first what was dropped, in the order of the steps, then the
            documents kept in their order, their ids those of their final texts.
        """
        counts = self.counts.setdefault(source, {name: StepCounts() for name in self.step_names})
        for batch in _batches(records):
            yield self._clean(batch, counts)

    @property
    def step_names(self) -> list[str]:
        """Names of all steps, reading included."""
        return [READ, *(step.name for step in self._steps)]

    def _clean(self, batch: Sequence[Record], counts: dict[str, StepCounts]) -> list[Document | DroppedDocument]:
        out: list[Document | DroppedDocument] = []
        documents: list[Document] = []
        sizes: list[int] = []
        for record in batch:
            size = len(record.text.encode())
            if isinstance(record, Broken):
                counts[READ].drop(size, MALFORMED)
                out.append(DroppedDocument(record.as_document(), READ, MALFORMED, record.detail))
            else:
                counts[READ].keep(size, size, changed=False)
                documents.append(record)
                sizes.append(size)
        for step in self._steps:
            documents, sizes = _apply(step, documents, sizes, counts[step.name], out)
        out += [replace(document, id=document_id(document.text)) for document in documents]
        return out

    def report(self) -> dict[str, Any]:
        """Counts for each source and over all: totals, and each step's own."""
        totals = {name: StepCounts() for name in self.step_names}
        for counts in self.counts.values():
            for name, step in counts.items():
                totals[name].add(step)
        return {
            "total": _section(totals),
            "sources": {source: _section(counts) for source, counts in self.counts.items()},
        }


def _apply(
    step: Step,
    documents: Sequence[Document],
    sizes: Sequence[int],
    counts: StepCounts,
    out: list[Document | DroppedDocument],
) -> tuple[list[Document], list[int]]:
    verdicts = step.apply(documents)
    kept: list[Document] = []
    kept_sizes: list[int] = []
    for document, size, verdict in zip(documents, sizes, verdicts, strict=True):
        if isinstance(verdict, Dropped):
            counts.drop(size, verdict.reason)
            dropped = replace(document, id=document_id(document.text))
            out.append(DroppedDocument(dropped, step.name, verdict.reason, verdict.detail))
        else:
            after = size if verdict is document else len(verdict.text.encode())
            counts.keep(size, after, changed=verdict is not document)
            kept.append(verdict)
            kept_sizes.append(after)
    return kept, kept_sizes


def _section(steps: dict[str, StepCounts]) -> dict[str, Any]:
    first, last = steps[READ], list(steps.values())[-1]
    dropped: Counter[str] = Counter()
    for counts in steps.values():
        dropped += counts.dropped
    return {
        "in": first.documents_in,
        "kept": last.kept,
        "dropped": dict(sorted(dropped.items())),
        "bytes_in": first.bytes_in,
        "bytes_kept": last.bytes_kept,
        "steps": {name: counts.as_dict() for name, counts in steps.items()},
    }


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += len(record.text)
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch = []
            characters = 0
    if batch:
        yield batch


def steps(config: CleaningConfig) -> list[Step]:
    """The steps that the settings ask for, in their order; they run before the filters."""
    return [_made(place, settings) for name, place in _STEPS if (settings := getattr(config, name)) is not None]


def filters(config: CleaningConfig) -> list[Filter]:
    """The filters that the settings ask for, in the order in which they judge."""
    return [_made(place, settings) for name, place in _FILTERS if (settings := getattr(config, name)) is not None]


def _made(place: str, settings: Config) -> Any:
    module, name = place.split(":")
    return getattr(import_module(f"llmkit.data.{module}"), name)(settings)


class _Filtering:
    """A filter as a step: measures and judges at once."""

    def __init__(self, decides: Filter) -> None:
        self.name = decides.name
        self._filter = decides

    def apply(self, batch: Sequence[Document]) -> list[Verdict]:
        if not batch:
            return []
        measured = {name: np.asarray(values) for name, values in self._filter.measure(batch).items()}
        verdicts = self._filter.judge(measured)
        return [document if verdict is None else verdict for document, verdict in zip(batch, verdicts, strict=True)]


def cleaning_steps(config: CleaningConfig) -> list[Step]:
    """Everything that the settings ask for as steps, in their order."""
    duplicates: list[Step] = [ExactDuplicates()] if config.exact_duplicates else []
    return [*steps(config), *(_Filtering(each) for each in filters(config)), *duplicates]
