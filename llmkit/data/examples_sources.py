"""Candidates of every source of examples: Python's documentation, files, and the `datasets` library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from llmkit.data.examples import Example, example_of
from llmkit.data.examples_build import BrokenRow, Candidate
from llmkit.data.examples_config import (
    ChatSource,
    ClassifySource,
    DatasetRowsSource,
    ExamplesConfig,
    FilesSource,
    MixtureSource,
    PreferenceSource,
    PythonSource,
    RowsSource,
)
from llmkit.data.examples_formats import detect_format, kind_of_format
from llmkit.data.python_objects import PythonObject, python_objects
from llmkit.data.records import ENDINGS, FileRecord, read_records
from llmkit.data.sources.base import readable_copy
from llmkit.data.sources.compression import COMPRESSIONS
from llmkit.data.sources.files import find_files, is_url
from llmkit.data.tasks.chat import ask, chat_candidates, mix
from llmkit.data.tasks.classify import LABELS, classify_candidates
from llmkit.data.tasks.preferences import preference_candidates
from llmkit.errors import DataError
from llmkit.store.splits import SPLITS, Split, Splits, split_of
from llmkit.store.stage import Context

Parts = list[Iterable[Candidate]]


def candidate_parts(config: ExamplesConfig, context: Context) -> Parts:
    """Candidates of each part of the source, the held-out parts first."""
    source = config.source
    if isinstance(source, PythonSource):
        return [python_candidates(source, python_objects(), config.splits)]
    kind = RowKind()
    return [
        row_candidates(source, files, None if split == "train" else split, kind)
        for split, files in record_parts(source, context)
    ]


def python_candidates(source: PythonSource, objects: list[PythonObject], fractions: Splits) -> list[Candidate]:
    """Candidates of a task derived from Python's documentation.

    Args:
        source: the task and its settings.
        objects: the objects to ask about.
        fractions: what is held out; spoiled answers are taken from the question's own split.
    """

    def group_of(item: PythonObject) -> str:
        return item.module if source.split_by == "module" else item.name

    if isinstance(source, ChatSource):
        return chat_candidates(ask(objects, source.task, source.wordings), group_of)
    if isinstance(source, MixtureSource):
        return chat_candidates(mix(objects, source.weights(), source.wordings), group_of)
    if isinstance(source, PreferenceSource):
        asked = mix(objects, source.weights(), source.wordings)
        return preference_candidates(
            asked, source.corruptions, source.pairs, group_of, lambda group: split_of(group, fractions)
        )
    assert isinstance(source, ClassifySource)
    return classify_candidates(
        objects,
        group_of,
        LABELS[source.labels],
        per_label=source.per_label,
        max_words=source.max_words,
        mask_names=source.mask_names,
    )


def record_parts(source: RowsSource, context: Context) -> Iterator[tuple[Split, Iterable[Iterable[FileRecord]]]]:
    """Records, file by file, of each part of a source of rows, the held-out parts first."""
    if isinstance(source, FilesSource):
        for split, keys in source.parts().items():
            yield _split(split), _file_records(source, keys, context)
    else:
        assert isinstance(source, DatasetRowsSource)
        for split, name in source.parts().items():
            yield _split(split), [dataset_records(source, name, streaming=source.streaming)]


def _split(name: str) -> Split:
    return next(split for split in SPLITS if split == name)


def _file_records(source: FilesSource, keys: list[str], context: Context) -> Iterator[Iterator[FileRecord]]:
    for key in keys:
        found = context.inputs.get(f"source.{key}")
        path = source.path(key) if found is None or is_url(source.path(key)) else str(found.path)
        files = find_files([path], ENDINGS)
        if not files:
            raise DataError(
                f"`{path}` holds no file of rows.",
                where=context.place(f"source.{key}"),
                hint=f"Files end in {', '.join(ENDINGS)}, alone or before {', '.join(COMPRESSIONS)}.",
            )
        for file in files:
            yield read_records(file.path, header=source.header)


def dataset_records(source: DatasetRowsSource, split: str, *, streaming: bool) -> Iterator[FileRecord]:
    """Rows of one split of a dataset.

    Raises:
        DataError: the dataset cannot be had, or breaks off.
    """
    from datasets import load_dataset

    number = 0
    try:
        rows: Any = load_dataset(
            source.dataset, source.config, split=split, revision=source.revision, streaming=streaming
        )
        for row in rows:
            number += 1
            yield FileRecord(f"{source.dataset} ({split}): row {number}", dict(row))
    except DataError:
        raise
    except Exception as error:
        # The library and the network below it raise anything; the reason is in the text.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        what = f"breaks off after row {number}" if number else "cannot be had"
        raise DataError(f"the split `{split}` of the dataset `{source.dataset}` {what}: {reason}.") from None


class RowKind:
    """The kind of a source's examples: given by its format, or by the first row, and the same for all."""

    def __init__(self) -> None:
        self.name = ""

    def accept(self, format: str, place: str) -> None:
        """Note the kind of a row.

        Raises:
            DataError: earlier rows are of another kind.
        """
        kind = kind_of_format(format)
        if self.name not in ("", kind):
            raise DataError(f"the row is one of {kind}, and the rows before it are {self.name}.", where=place)
        self.name = kind


def row_candidates(
    source: RowsSource, files: Iterable[Iterable[FileRecord]], part: Split | None, kind: RowKind
) -> Iterator[Candidate]:
    """Candidates of a source of rows.

    Args:
        source: shape of the rows, and what to do about malformed ones.
        files: the rows of each file; a file is in one format, all are of one kind.
        part: the held-out split that the rows are for; None where they are to be divided.
        kind: the kind of the examples that came before.

    Raises:
        DataError: a row is malformed, unless such rows are to be dropped.
    """
    for records in files:
        format: str = source.format
        for record in records:
            try:
                if format == "auto" and record.problem is None:
                    format = detect_format(record, source.columns, kind.name)
                if format != "auto":
                    kind.accept(format, record.place)
                yield _candidate(source, record, format, part)
            except DataError as error:
                if source.malformed == "error":
                    raise
                text = (
                    readable_copy(json.dumps(record.values, ensure_ascii=False, default=str)) if record.values else ""
                )
                yield Candidate("", None, "malformed", part=part, broken=BrokenRow(str(error), text))


def _candidate(source: RowsSource, record: FileRecord, format: str, part: Split | None) -> Candidate:
    example = _example(source, record, format)
    group = example.group() if source.split_key is None else _split_value(record, source.split_key)
    return Candidate(group, example, task=example.task or "", part=part)


def _example(source: RowsSource, record: FileRecord, format: str) -> Example:
    if record.problem is not None:
        raise DataError(record.problem, where=record.place)
    return example_of(record, format, source.columns)


def _split_value(record: FileRecord, key: str) -> str:
    value = record.values.get(key)
    if value is None:
        raise DataError(f"the row has no `{key}`, which decides its split.", where=record.place)
    return str(value)


def row_problem(source: RowsSource, files: Iterable[Iterable[FileRecord]], count: int) -> str | None:
    """What is wrong with one of the first `count` rows of each file, or with what they are read from."""
    beginnings = (islice(records, count) for records in files)
    try:
        for _ in row_candidates(source, beginnings, None, RowKind()):
            pass
    except DataError as error:
        return str(error)
    return None
