"""The task `write`: what is left of some parts becomes files of documents, what is not becomes files of the dropped.

Documents have their measures beside them, in columns named `<filter>.<column>`, and so has what was dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import Dropped
from llmkit.data.cleaning.pipeline import FILLED
from llmkit.data.corpus.census import add_up, count_documents_of
from llmkit.data.corpus.counts import StepCounts
from llmkit.data.corpus.duplicates import Judged
from llmkit.data.corpus.measuring import KEPT, MEASURES, SPLIT, VERDICTS
from llmkit.data.corpus.parts import documents_file, load_sizes
from llmkit.data.corpus.reading import DROPPED, DROPPED_COLUMNS, QUARANTINE, QUARANTINE_COLUMNS
from llmkit.data.deduplication.results import Settled, cut, settled
from llmkit.data.execution.tasks import Result, Task, Work
from llmkit.store.documents import COLUMNS, document_id
from llmkit.store.splits import SPLITS

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 2
FILE_BYTES = 1 << 27
"""Bytes of text, before duplicates go, from which the next part begins a new file."""
FILE_ROWS = 100_000
_GROUP_ROWS = 1_000
_GROUP_BYTES = 1 << 24
_FEW_VALUES = ("source", "license", "language", "split", "step", "reason")


@dataclass(frozen=True)
class Group:
    """What one task writes.

    Args:
        reads: tasks of reading whose own drops and quarantine it writes.
        parts: the parts, with the place of each among all.
    """

    reads: tuple[Result, ...]
    parts: tuple[tuple[int, Judged], ...]


def group_parts(reads: Sequence[Result], parts: Sequence[Judged], judged: Sequence[Result]) -> Iterator[Group]:
    """Neighbours together up to the size of a file.

    Args:
        reads: results of reading, in the order of the sources.
        parts: their parts, in the same order.
        judged: what was judged of each.
    """
    heads: list[Result] = []
    body: list[tuple[int, Judged]] = []
    rows = size = index = 0
    for read in reads:
        heads.append(read)
        for _ in read.facts["parts"]:
            item = parts[index]
            if body and (rows >= FILE_ROWS or size >= FILE_BYTES):
                # A task of reading that begins here is written here.
                yield Group(tuple(heads[:-1] if item.part.number == 0 else heads), tuple(body))
                heads, body, rows, size = heads[-1:] if item.part.number == 0 else [], [], 0, 0
            body.append((index, item))
            rows += item.part.rows
            size += judged[index].facts["bytes"]
            index += 1
    if heads or body:
        yield Group(tuple(heads), tuple(body))


def write_task(group: Group, methods: Mapping[str, Result], first: int, min_characters: int) -> Task:
    """The task that writes a group.

    Args:
        group: what it writes.
        methods: what each method of deduplication does, in their order.
        first: the place of the first part in that.
        min_characters: a document of which cuts leave less is dropped.
    """
    reads = list(dict.fromkeys([*(item.part.read for _, item in group.parts), *(read.key for read in group.reads)]))
    inputs: dict[str, list[str]] = {
        "read": reads,
        "judged": [item.judged for _, item in group.parts],
        "methods": [result.key for result in methods.values()],
    }
    filters = list(group.parts[0][1].measured) if group.parts else []
    for name in filters:
        inputs[f"measured.{name}"] = [item.measured[name] for _, item in group.parts]
    return Task(
        "write",
        "llmkit.data.corpus.writing:write",
        {
            "heads": [reads.index(read.key) for read in group.reads],
            "parts": [[reads.index(item.part.read), item.part.number, first + index] for index, item in group.parts],
            "sources": [item.part.source for _, item in group.parts],
            "filters": filters,
            "filled": {field: f"{name}.{column}" for field, (name, column) in FILLED.items() if name in filters},
            "methods": list(methods),
            "min_characters": min_characters,
        },
        inputs,
        version=VERSION,
        label=group.parts[0][1].part.label if group.parts else "",
        cost=sum(item.part.bytes for _, item in group.parts),
    )


def write(work: Work) -> Mapping[str, Any]:
    """Write the files of a group, those that have rows: `<split>.parquet`, `dropped.parquet`, `quarantine.parquet`.

    Returns:
        `rows` and `bytes` of text by file, `counts` of each method by number of the source, and the `census` of the
        documents that are kept.
    """
    import pyarrow as pa

    measures = {} if not work.settings["parts"] else _measure_types(work, 0)
    columns = [*((name, pa.string()) for name in COLUMNS), *measures.items()]
    extra = [(name, pa.string()) for name in DROPPED_COLUMNS[len(COLUMNS) :]]
    schemas: dict[str, pa.Schema] = {split: pa.schema(columns) for split in SPLITS}
    schemas[DROPPED] = pa.schema([*columns[: len(COLUMNS)], *extra, *columns[len(COLUMNS) :]])
    schemas[QUARANTINE] = pa.schema([(name, pa.string()) for name in QUARANTINE_COLUMNS])
    counts: dict[str, dict[str, StepCounts]] = {}
    censuses: list[Mapping[str, Any]] = []
    with _Files(work.output, schemas) as files:
        for head in work.settings["heads"]:
            for name in (DROPPED, QUARANTINE):
                for file in sorted(work.inputs["read"][head].path.glob(f"{name}-*.parquet")):
                    files.copy(name, file)
        for place, source in enumerate(work.settings["sources"]):
            here = counts.setdefault(str(source), {name: StepCounts() for name in work.settings["methods"]})
            censuses += _write_part(work, place, files, here)
    return {
        "rows": files.rows,
        "bytes": files.bytes,
        "counts": {source: {name: step.as_dict() for name, step in here.items()} for source, here in counts.items()},
        "census": add_up(censuses),
    }


def _measure_types(work: Work, place: int) -> dict[str, Any]:
    import pyarrow.parquet as pq

    found: dict[str, Any] = {}
    for name in work.settings["filters"]:
        schema = pq.read_schema(work.inputs[f"measured.{name}"][place].path / MEASURES)
        found.update({field.name: field.type for field in schema})
    return found


def _write_part(work: Work, place: int, files: _Files, counts: Mapping[str, StepCounts]) -> list[Mapping[str, Any]]:
    """Write a part; gives a census of the documents that each split gets."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    read, number, index = work.settings["parts"][place]
    folder = work.inputs["read"][read].path
    judged = work.inputs["judged"][place].path
    table = pq.read_table(documents_file(folder, number), use_threads=False)
    for name in work.settings["filters"]:
        measured = pq.read_table(work.inputs[f"measured.{name}"][place].path / MEASURES, use_threads=False)
        for column in measured.column_names:
            table = table.append_column(column, measured.column(column))
    for field, column in work.settings["filled"].items():
        known = pc.coalesce(table.column(field), table.column(column))
        table = table.set_column(COLUMNS.index(field), field, known)
    settled_by = {
        name: settled(result.path, index)
        for name, result in zip(work.settings["methods"], work.inputs["methods"], strict=True)
    }
    fate = _Fate(np.load(judged / KEPT), load_sizes(folder, number), _verdicts(judged))
    for name, found in settled_by.items():
        fate.apply(name, found, table.column("text"), work.settings["min_characters"], counts[name])
    table = fate.changed(table)
    censuses: list[Mapping[str, Any]] = []
    split = np.load(judged / SPLIT)
    for which, name in enumerate(SPLITS):
        mask = fate.kept & (split == which)
        if mask.any():
            chosen = table.filter(pa.array(mask))
            values = pa.array([name] * len(chosen), pa.string())
            files.write(name, chosen.set_column(COLUMNS.index("split"), "split", values))
            censuses.append(count_documents_of(chosen))
    rows = np.flatnonzero(~fate.kept)
    if len(rows):
        chosen = table.take(pa.array(rows))
        reasons = [fate.verdicts[row] for row in rows.tolist()]
        for position, name in enumerate(DROPPED_COLUMNS[len(COLUMNS) :]):
            values = pa.array([reason[position] for reason in reasons], pa.string())
            chosen = chosen.add_column(len(COLUMNS) + position, name, values)
        files.write(DROPPED, chosen)
    return censuses


def _verdicts(judged: Path) -> dict[int, tuple[str, str, str]]:
    import pyarrow.parquet as pq

    found: dict[int, tuple[str, str, str]] = {}
    for file in sorted(judged.glob(f"{VERDICTS}-*.parquet")):
        for row in pq.read_table(file, use_threads=False).to_pylist():
            found[int(row["row"])] = (row["step"], row["reason"], row["detail"])
    return found


class _Fate:
    """What becomes of the documents of a part.

    Args:
        kept: which of them filters keep, [documents]; changed as methods drop some.
        sizes: UTF-8 bytes of their texts.
        verdicts: step, reason and detail of each that is dropped, by row.
    """

    def __init__(
        self, kept: NDArray[np.bool_], sizes: NDArray[np.int64], verdicts: dict[int, tuple[str, str, str]]
    ) -> None:
        self.kept = kept
        self.verdicts = verdicts
        self._sizes = sizes
        self._cuts: dict[int, list[NDArray[np.int64]]] = {}
        self._texts: dict[int, str] = {}

    def apply(self, name: str, found: Settled, texts: Any, min_characters: int, counts: StepCounts) -> None:
        """Drop and cut what a method of deduplication says, and count it."""
        before = self.kept
        here = StepCounts(documents_in=int(before.sum()), bytes_in=int(self._sizes[before].sum()))
        self.kept = before.copy()
        for row, dropped in found.dropped.items():
            self._drop(row, name, dropped, here)
        for row, cuts in found.cuts.items():
            if self.kept[row]:
                self._cut(row, name, cuts, texts[row].as_py(), min_characters, here)
        here.kept, here.bytes_kept = int(self.kept.sum()), int(self._sizes[self.kept].sum())
        counts.add(here)

    def changed(self, table: pa.Table) -> pa.Table:
        """The documents with the texts that cuts have left, and their ids."""
        if not self._texts:
            return table
        import pyarrow as pa

        texts = table.column("text").to_pylist()
        ids = table.column("id").to_pylist()
        for row, text in self._texts.items():
            texts[row], ids[row] = text, document_id(text)
        for name, values in (("text", texts), ("id", ids)):
            table = table.set_column(COLUMNS.index(name), name, pa.array(values, pa.string()))
        return table

    def _drop(self, row: int, name: str, dropped: Dropped, counts: StepCounts) -> None:
        self.kept[row] = False
        self.verdicts[row] = (name, dropped.reason, dropped.detail)
        counts.dropped[dropped.reason] += 1

    def _cut(
        self, row: int, name: str, cuts: NDArray[np.int64], text: str, min_characters: int, counts: StepCounts
    ) -> None:
        every = [*self._cuts.get(row, ()), cuts]
        left = cut(text, every)
        characters = len(left.strip())
        if characters < min_characters:
            self._drop(row, name, Dropped("too_short", f"{characters} characters are left"), counts)
            return
        counts.changed += left != self._texts.get(row, text)
        self._cuts[row], self._texts[row] = every, left
        self._sizes[row] = len(left.encode())


class _Files:
    """Parquet files that are begun when they get their first row; a context manager.

    Args:
        folder: where to.
        schemas: columns by name of the file.
    """

    def __init__(self, folder: Path, schemas: Mapping[str, pa.Schema]) -> None:
        self._folder = folder
        self._schemas = schemas
        self._writers: dict[str, Any] = {}
        self._waiting: dict[str, list[Any]] = {name: [] for name in schemas}
        self.rows: dict[str, int] = dict.fromkeys(schemas, 0)
        self.bytes: dict[str, int] = dict.fromkeys(schemas, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self._schemas:
            if kind is None:
                self._flush(name, everything=True)
            if name in self._writers:
                self._writers[name].close()

    def copy(self, name: str, file: Path) -> None:
        """Append the rows of a file; columns that it does not have hold nothing."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(file) as opened:
            for group in range(opened.num_row_groups):
                table = opened.read_row_group(group, use_threads=False)
                for field in self._schemas[name]:
                    if field.name not in table.column_names:
                        table = table.append_column(field, pa.nulls(len(table), field.type))
                self.write(name, table)

    def write(self, name: str, table: pa.Table) -> None:
        """Append rows."""
        table = table.select(self._schemas[name].names).cast(self._schemas[name])
        self._waiting[name].append(table)
        self.rows[name] += len(table)
        self.bytes[name] += int(_text_bytes(table).sum())
        self._flush(name, everything=False)

    def _flush(self, name: str, *, everything: bool) -> None:
        """Write row groups of some size; less than one stays until more comes."""
        import pyarrow as pa

        if not self._waiting[name]:
            return
        table = pa.concat_tables(self._waiting[name])
        ends = np.cumsum(_text_bytes(table))
        begin = 0
        while begin < len(table):
            past = int(ends[begin - 1]) if begin else 0
            end = min(begin + _GROUP_ROWS, int(np.searchsorted(ends, past + _GROUP_BYTES)) + 1)
            if end > len(table) or (end == len(table) and ends[-1] - past < _GROUP_BYTES and end - begin < _GROUP_ROWS):
                if not everything:
                    break
                end = len(table)
            self._writer(name).write_table(table.slice(begin, end - begin), row_group_size=end - begin)
            begin = end
        self._waiting[name] = [table.slice(begin)] if begin < len(table) else []

    def _writer(self, name: str) -> Any:
        import pyarrow.parquet as pq

        if name not in self._writers:
            names = self._schemas[name].names
            self._writers[name] = pq.ParquetWriter(
                self._folder / f"{name}.parquet",
                self._schemas[name],
                compression="zstd",
                compression_level=3,
                use_dictionary=[column for column in _FEW_VALUES if column in names],
                write_statistics=[column for column in names if column not in ("text", "metadata", "detail")],
            )
        return self._writers[name]


def _text_bytes(table: pa.Table) -> NDArray[np.int64]:
    """UTF-8 bytes of each text."""
    import pyarrow.compute as pc

    sizes = pc.fill_null(pc.binary_length(table.column("text")), 0)
    found: NDArray[np.int64] = sizes.to_numpy().astype(np.int64)
    return found
