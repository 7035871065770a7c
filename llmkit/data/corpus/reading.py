"""The task `read`: some slices of a source become documents, through the steps that change each by itself.

Its result holds the documents in parts (`parts.py`), what a step dropped (`dropped-*.parquet`), and records that could
not be read (`quarantine-*.parquet`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from pydantic import TypeAdapter

from llmkit.data.cleaning.base import Dropped, Step
from llmkit.data.cleaning.config import CleaningConfig
from llmkit.data.cleaning.pipeline import steps
from llmkit.data.config import DataConfig
from llmkit.data.corpus.counts import READ, StepCounts
from llmkit.data.corpus.parts import PartWriter
from llmkit.data.execution.tasks import Task, Work
from llmkit.data.sources.base import Broken, Record, Slice
from llmkit.data.sources.config import AnySource, PythonDocsSource, SourceConfig
from llmkit.data.sources.registry import open_reader
from llmkit.errors import DataError
from llmkit.store.documents import COLUMNS, Document, ParquetFiles, document_id, document_row

DROPPED = "dropped"
DROPPED_COLUMNS = (*COLUMNS, "step", "reason", "detail")
QUARANTINE = "quarantine"
QUARANTINE_COLUMNS = ("source", "path", "reason", "detail", "text")
VERSION = 2
_BATCH_DOCUMENTS = 512
_BATCH_CHARACTERS = 1 << 22
_SLICES: TypeAdapter[list[Slice]] = TypeAdapter(list[Slice])
_SOURCE: TypeAdapter[SourceConfig] = TypeAdapter(AnySource)


def read_tasks(config: DataConfig, index: int, place: str) -> list[Task]:
    """The tasks that read a source: one for each of its slices, or one for all where only some records are wanted.

    Args:
        config: settings of the stage.
        index: number of the source.
        place: where the source is in the config, for messages.

    Raises:
        DataError: the source cannot be looked through.
    """
    source = config.sources[index]
    settings: dict[str, Any] = {
        "source": source.model_dump(mode="json", exclude={"split_key"}),
        "steps": step_settings(config.cleaning),
    }
    if isinstance(source, PythonDocsSource):
        settings["environment"] = dict(config.environment())
    try:
        slices = open_reader(source).slices()
    except DataError as error:
        raise DataError(error.message, where=place, hint=error.hint) from None
    groups = [slices] if source.limit is not None else [[piece] for piece in slices]
    return [
        Task(
            "read",
            "llmkit.data.corpus.reading:read",
            {**settings, "slices": _SLICES.dump_python(group, mode="json")},
            places={"where": place},
            version=VERSION,
            label=f"{source.label}, {group[0].name}",
            cost=sum(file.size for piece in group for file in piece.files) // max(1, _pieces(group, slices)),
        )
        for group in groups
        if group
    ]


def _pieces(group: Sequence[Slice], slices: Sequence[Slice]) -> int:
    """How many slices share the file of a group that is one slice of a file."""
    whole = len(group) > 1 or len(group[0].files) != 1 or (group[0].begin == 0 and group[0].end is None)
    return 1 if whole else sum(piece.files == group[0].files for piece in slices)


def step_settings(config: CleaningConfig) -> dict[str, Any]:
    """Settings of the steps that run while reading, by name, in their order."""
    dumped = config.model_dump(mode="json")
    return {step.name: dumped[step.name] for step in steps(config)}


def only(settings: Mapping[str, Any]) -> CleaningConfig:
    """Settings of cleaning in which nothing is on but what is named."""
    off = dict.fromkeys(CleaningConfig.model_fields)
    return CleaningConfig.model_validate_json(json.dumps({**off, **settings}))


def read(work: Work) -> Mapping[str, Any]:
    """Read slices.

    Returns:
        `parts` (rows and bytes of each), and the `counts` of each step.

    Raises:
        DataError: the source breaks off, and what is missing cannot be told.
    """
    source = _SOURCE.validate_json(json.dumps(work.settings["source"]))
    slices = _SLICES.validate_json(json.dumps(work.settings["slices"]))
    reader = open_reader(source)
    records = islice(chain.from_iterable(map(reader.read, slices)), source.limit)
    cleaning = steps(only(work.settings["steps"]))
    counts = {name: StepCounts() for name in (READ, *(step.name for step in cleaning))}
    writer = PartWriter(work.output)
    with (
        ParquetFiles(work.output, DROPPED, DROPPED_COLUMNS) as dropped,
        ParquetFiles(work.output, QUARANTINE, QUARANTINE_COLUMNS) as quarantine,
    ):
        try:
            for batch in _batches(records):
                documents, sizes = _admit(batch, counts[READ], quarantine)
                for step in cleaning:
                    documents, sizes = _apply(step, documents, sizes, counts[step.name], dropped)
                for document, size in zip(documents, sizes, strict=True):
                    writer.write(replace(document, id=document_id(document.text)), size)
        except DataError as error:
            raise DataError(error.message, where=work.places["where"], hint=error.hint) from None
    writer.close()
    return {"parts": writer.parts, "counts": {name: step.as_dict() for name, step in counts.items()}}


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


def _admit(batch: Sequence[Record], counts: StepCounts, quarantine: ParquetFiles) -> tuple[list[Document], list[int]]:
    """The documents among records, with the sizes of their texts; what is broken goes to the quarantine."""
    documents: list[Document] = []
    sizes: list[int] = []
    for record in batch:
        size = len(record.text.encode())
        if isinstance(record, Broken):
            counts.quarantine(size, record.reason)
            quarantine.write([record.source, record.path, record.reason, record.detail, record.text])
        else:
            counts.keep(size, size, changed=False)
            documents.append(record)
            sizes.append(size)
    return documents, sizes


def _apply(
    step: Step, documents: Sequence[Document], sizes: Sequence[int], counts: StepCounts, dropped: ParquetFiles
) -> tuple[list[Document], list[int]]:
    """What a step leaves, with the sizes of the texts; a document that it drops is written as it came."""
    kept: list[Document] = []
    kept_sizes: list[int] = []
    for document, size, verdict in zip(documents, sizes, step.apply(documents), strict=True):
        if isinstance(verdict, Dropped):
            counts.drop(size, verdict.reason)
            row = document_row(replace(document, id=document_id(document.text)))
            dropped.write([*row, step.name, verdict.reason, verdict.detail])
        else:
            changed = verdict is not document and verdict.text != document.text
            after = len(verdict.text.encode()) if changed else size
            counts.keep(size, after, changed)
            kept.append(verdict)
            kept_sizes.append(after)
    return kept, kept_sizes
