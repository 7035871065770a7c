"""What the data was: documents and examples with what was kept and dropped, tokenizers, tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.report.files import as_finite, as_list, as_mapping, as_text, read_lines, read_object

REPORT = "report.json"
SPLITS = ("train", "validation", "test")
_DROPPED_OF_REASON = 2
_DROPPED_SCANNED = 50_000
_EXAMPLES_SHOWN = 3
PYTHON_LICENSE = "PSF-2.0"
"""Licence of the documentation and source that every Python carries."""
_UNREADABLE = "unreadable: "
"""In front of the reasons of records in quarantine."""
_MESSAGE_KEYS = ("role", "content")


@dataclass(frozen=True)
class LedgerRow:
    """What came in under one name, what of it was kept, and what was dropped or could not be read, by reason."""

    name: str
    came: int
    kept: int
    dropped: Mapping[str, int]
    bytes_kept: int | None

    @property
    def adds_up(self) -> bool:
        """Whether what was kept and what was dropped make up what came in."""
        return self.came == self.kept + sum(self.dropped.values())


@dataclass(frozen=True)
class Ledger:
    """Counts by source or task, and their total as the stage reported it."""

    rows: tuple[LedgerRow, ...]
    total: LedgerRow

    @property
    def reasons(self) -> tuple[str, ...]:
        """Every reason, the most frequent first."""
        dropped = dict(self.total.dropped)
        for row in self.rows:
            dropped = {**dict.fromkeys(row.dropped, 0), **dropped}
        return tuple(sorted(dropped, key=lambda reason: (-dropped[reason], reason)))

    @property
    def adds_up(self) -> bool:
        """Whether every row adds up, and the rows add up to the total."""
        rows = self.rows or (self.total,)
        sums = LedgerRow(
            "sums",
            sum(row.came for row in rows),
            sum(row.kept for row in rows),
            {reason: sum(row.dropped.get(reason, 0) for row in rows) for reason in self.reasons},
            None,
        )
        counted = {reason: self.total.dropped.get(reason, 0) for reason in self.reasons}
        same = (sums.came, sums.kept, sums.dropped) == (self.total.came, self.total.kept, counted)
        return same and all(row.adds_up for row in rows)


@dataclass(frozen=True)
class SplitCounts:
    """A split of the data: its counts by name ("documents", "bytes", "tokens", "rows")."""

    name: str
    counts: Mapping[str, float]


@dataclass(frozen=True)
class DroppedSample:
    """A document that was dropped: where it came from, why, and how its text begins."""

    source: str
    path: str
    step: str
    reason: str
    detail: str
    text: str


@dataclass(frozen=True)
class ExampleRow:
    """An example as labelled texts: its parts in order ("user", "assistant"; "text", "label"; "chosen", "rejected")."""

    id: str
    parts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Compression:
    """How many bytes of text a token stands for in one source."""

    name: str
    documents: int | None
    bytes: int | None
    tokens: int | None
    bytes_per_token: float | None


@dataclass(frozen=True)
class DataReport:
    """What one data stage did; what does not apply to its kind is empty.

    Args:
        ledger: what was kept and dropped, of documents by source, of examples by task.
        splits: counts of each split.
        labels: classes of labelled texts with their counts in the training split.
        dropped: some of the dropped documents, of each reason.
        examples: the first examples of the training split.
        compression: bytes per token by source, "all" first.
        measured_on: the split that this was measured on.
        licenses: each source with its licences, as far as they are known.
        languages: languages of the documents, the most frequent first, with their numbers; "" where it is not known.
        gaps: what the stage says is known to be missing.
    """

    ledger: Ledger | None = None
    splits: tuple[SplitCounts, ...] = ()
    labels: tuple[tuple[str, int], ...] = ()
    dropped: tuple[DroppedSample, ...] = ()
    examples: tuple[ExampleRow, ...] = ()
    compression: tuple[Compression, ...] = ()
    measured_on: str | None = None
    licenses: tuple[tuple[str, str | None], ...] = ()
    languages: tuple[tuple[str, int], ...] = ()
    gaps: tuple[str, ...] = ()


def read_data(directory: Path, kind: str, config: Mapping[str, Any]) -> DataReport:
    """What a data stage's folder says of itself."""
    report = read_object(directory / REPORT)
    if kind == "tokenizer":
        compression = as_mapping(report.get("compression"))
        by_source = {"all": compression.get("all"), **as_mapping(compression.get("sources"))}
        return DataReport(
            compression=tuple(_compression(name, as_mapping(entry)) for name, entry in by_source.items() if entry),
            measured_on=compression.get("split"),
        )
    splits = as_mapping(report.get("splits"))
    counted = tuple(_split(name, as_mapping(splits[name])) for name in _in_order(splits))
    if kind == "tokens":
        by_source = as_mapping(as_mapping(report.get("sources")).get("train"))
        compression_rows = tuple(_compression(name, as_mapping(entry)) for name, entry in by_source.items())
        return DataReport(splits=counted, compression=compression_rows, measured_on="train")
    licenses = tuple(_licenses(config))
    if kind == "examples":
        labels = as_mapping(as_mapping(splits.get("train")).get("labels"))
        return DataReport(
            ledger=_ledger(report, report.get("tasks")),
            splits=counted,
            labels=tuple((str(label), _whole(number)) for label, number in labels.items()),
            examples=tuple(_examples(directory)),
            licenses=licenses,
        )
    ledger = _ledger(report.get("total"), report.get("sources"))
    census = as_mapping(report.get("census"))
    return DataReport(
        ledger=ledger,
        splits=counted,
        dropped=tuple(_dropped(directory, _without_quarantine(ledger.total.dropped) if ledger else {})),
        licenses=tuple(_recorded(licenses, census)),
        languages=tuple(_languages(census)),
        gaps=tuple(map(as_text, as_list(report.get("gaps")))),
    )


def _in_order(splits: Mapping[str, Any]) -> list[str]:
    return [*(name for name in SPLITS if name in splits), *sorted(set(splits) - set(SPLITS))]


def _whole(value: Any) -> int:
    number = as_finite(value)
    return round(number) if number is not None else 0


def _optional(value: Any) -> int | None:
    return None if as_finite(value) is None else _whole(value)


def _split(name: str, entry: Mapping[str, Any]) -> SplitCounts:
    numbers = {key: as_finite(value) for key, value in entry.items()}
    return SplitCounts(name, {key: value for key, value in numbers.items() if value is not None})


def _compression(name: str, entry: Mapping[str, Any]) -> Compression:
    size = entry.get("bytes", entry.get("text_bytes"))
    return Compression(
        name,
        _optional(entry.get("documents")),
        _optional(size),
        _optional(entry.get("tokens")),
        as_finite(entry.get("bytes_per_token")),
    )


def _ledger(total: Any, rows: Any) -> Ledger | None:
    if "in" not in as_mapping(total):
        return None
    parts = tuple(_ledger_row(name, as_mapping(entry)) for name, entry in as_mapping(rows).items())
    return Ledger(parts, _ledger_row("total", as_mapping(total)))


def _ledger_row(name: str, entry: Mapping[str, Any]) -> LedgerRow:
    dropped = {str(reason): _whole(number) for reason, number in as_mapping(entry.get("dropped")).items()}
    for reason, number in as_mapping(entry.get("quarantined")).items():
        dropped[_UNREADABLE + str(reason)] = _whole(number)
    size = _optional(entry.get("bytes_kept"))
    return LedgerRow(name, _whole(entry.get("in")), _whole(entry.get("kept")), dropped, size)


def _licenses(config: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Name and licence of each source that the settings of a stage name."""
    single = config.get("source")
    for source in [*as_list(config.get("sources")), *([single] if isinstance(single, dict) else [])]:
        entry = as_mapping(source)
        kind = entry.get("kind")
        name = entry.get("name") or entry.get("dataset") or kind or "source"
        yield str(name), entry.get("license") or (PYTHON_LICENSE if kind == "python-docs" else None)


def _without_quarantine(dropped: Mapping[str, int]) -> dict[str, int]:
    return {reason: number for reason, number in dropped.items() if not reason.startswith(_UNREADABLE)}


def _recorded(named: Iterable[tuple[str, str | None]], census: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """The licences that the documents of each source carry; what the settings say of one that was not counted."""
    for source, license in named:
        counted = as_mapping(as_mapping(census.get(source)).get("licenses"))
        yield from ((source, name or None) for name in counted or [license])


def _languages(census: Mapping[str, Any]) -> list[tuple[str, int]]:
    total: Counter[str] = Counter()
    for counted in map(as_mapping, census.values()):
        for name, entry in as_mapping(counted.get("languages")).items():
            total[name] += _whole(as_mapping(entry).get("documents"))
    return total.most_common()


def _dropped(directory: Path, reasons: Mapping[str, int]) -> list[DroppedSample]:
    """The first dropped documents of each reason, looking no further than the counts of the reasons require."""
    found: dict[str, list[DroppedSample]] = {}
    wanting = sum(min(number, _DROPPED_OF_REASON) for number in reasons.values())
    for row in _dropped_rows(directory):
        sample = DroppedSample(**{name: row.get(name) or "" for name in DroppedSample.__dataclass_fields__})
        samples = found.setdefault(sample.reason, [])
        if len(samples) < _DROPPED_OF_REASON:
            samples.append(sample)
            wanting -= 1
        if reasons and wanting == 0:
            break
    return [sample for reason in sorted(found) for sample in found[reason]]


def _dropped_rows(directory: Path) -> Iterator[dict[str, str | None]]:
    files = sorted((directory / "dropped").glob("*.parquet"))
    if not files:
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    scanned = 0
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                wanted = [name for name in DroppedSample.__dataclass_fields__ if name in opened.schema_arrow.names]
                for batch in opened.iter_batches(batch_size=256, columns=wanted, use_threads=False):
                    yield from batch.to_pylist()
                    scanned += batch.num_rows
                    if scanned >= _DROPPED_SCANNED:
                        return
        except (pa.ArrowInvalid, OSError):
            # An interrupted attempt leaves files without their footer.
            continue


def _examples(directory: Path) -> Iterator[ExampleRow]:
    for number, row in enumerate(read_lines(directory / "train.jsonl")):
        if number == _EXAMPLES_SHOWN:
            return
        yield ExampleRow(as_text(row.get("id", number)), tuple(_parts(row)))


def _parts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("prompt", "messages"):
        for message in as_list(row.get(key)):
            role, content = (as_text(as_mapping(message).get(name, "")) for name in _MESSAGE_KEYS)
            yield role, content
    for key in ("chosen", "rejected", "text", "label"):
        if key in row:
            yield key, as_text(row[key])
