"""What is in documents and in token shards, as small tables for people."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.data.corpus.counts import READ
from llmkit.data.shards import INDEX, TokenShards
from llmkit.data.stage import DROPPED, QUARANTINE, REPORT
from llmkit.store.documents import document_files
from llmkit.store.splits import SPLITS

_PREVIEW_CHARACTERS = 160
_PREVIEW_TOKENS = 48


@dataclass(frozen=True)
class Table:
    """A title, names of columns, and rows of plain values."""

    title: str
    columns: list[str]
    rows: list[list[Any]]


def preview(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text[: 2 * _PREVIEW_CHARACTERS].split())
    return line if len(line) <= _PREVIEW_CHARACTERS else line[: _PREVIEW_CHARACTERS - 1] + "…"


def summarize_documents(directory: Path, samples: int = 3) -> list[Table]:
    """Documents by source and split, what each step kept and dropped, and samples of both.

    Args:
        directory: an artifact of documents.
        samples: documents shown of each split and of each reason.

    Raises:
        ArtifactError: there are no documents here.
    """
    tables = [_counts(directory)]
    report = directory / REPORT
    if report.is_file():
        tables.append(_steps(json.loads(report.read_text(encoding="utf-8"))))
    tables.append(_kept(directory, samples))
    gone = _gone(directory, samples)
    return [*tables, gone] if gone.rows else tables


def _counts(directory: Path) -> Table:
    import pyarrow.parquet as pq

    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for split in SPLITS:
        for file in document_files(directory, split):
            for source in pq.read_table(file, columns=["source"]).column("source").value_counts().to_pylist():
                counts[source["values"]][split] += source["counts"]
    rows = [[source, *(found[split] for split in SPLITS), found.total()] for source, found in sorted(counts.items())]
    return Table("Documents", ["source", *SPLITS, "all"], rows)


def _steps(report: dict[str, Any]) -> Table:
    rows = []
    for source, section in report["sources"].items():
        for step, counts in section["steps"].items():
            gone = {**counts["quarantined"], **counts["dropped"]}
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in gone.items())
            rows.append([source, step, counts["in"], counts["changed"], counts["kept"], counts["bytes_kept"], reasons])
    return Table("Steps", ["source", "step", "in", "changed", "kept", "bytes kept", "dropped"], rows)


def _kept(directory: Path, samples: int) -> Table:
    import pyarrow.parquet as pq

    rows = []
    for split in SPLITS:
        files = [pq.ParquetFile(file) for file in document_files(directory, split)]
        groups = [(file, group) for file in files for group in range(file.num_row_groups)]
        for file, group in _spread(groups, samples):
            first = next(file.iter_batches(1, row_groups=[group], columns=["source", "path", "text"])).to_pylist()[0]
            rows.append([split, first["source"], first["path"], len(first["text"]), preview(first["text"])])
        for file in files:
            file.close()
    return Table("Samples", ["split", "source", "path", "characters", "text"], rows)


def _spread(items: Sequence[Any], count: int) -> Iterator[Any]:
    """Up to `count` items, evenly spread, the first among them."""
    taken = min(count, len(items))
    return (items[index * len(items) // taken] for index in range(taken))


def _gone(directory: Path, samples: int) -> Table:
    """Some records for each reason for which there is no document: quarantined ones first, then dropped ones."""
    import pyarrow.parquet as pq

    shown: dict[tuple[str, str], list[list[Any]]] = defaultdict(list)
    columns = ["reason", "source", "path", "detail", "text"]
    for folder in (QUARANTINE, DROPPED):
        for file in sorted((directory / folder).glob("*.parquet")):
            with pq.ParquetFile(file) as opened:
                wanted = ["step", *columns] if folder == DROPPED else columns
                for batch in opened.iter_batches(columns=wanted):
                    for row in batch.to_pylist():
                        found = shown[row.get("step", READ), row["reason"]]
                        if len(found) < samples:
                            found.append([*(row[name] for name in columns[:-1]), preview(row["text"])])
    return Table("Samples of what was dropped", columns, [row for found in shown.values() for row in found])


def summarize_tokens(directory: Path, decode: Callable[[Sequence[int]], str], samples: int = 3) -> list[Table]:
    """Counts by split, and the first tokens of some documents.

    Args:
        directory: an artifact of tokens.
        decode: text of token ids, special tokens included.
        samples: documents shown of each split.

    Raises:
        ArtifactError: damaged files.
    """
    counts = []
    shown = []
    for split in SPLITS:
        if not (directory / split / INDEX).is_file():
            continue
        shards = TokenShards(directory, split)
        per_token = shards.text_bytes / shards.tokens if shards.tokens else None
        counts.append([split, shards.documents, shards.tokens, shards.text_bytes, per_token, shards.shard_count])
        for index in _spread(range(shards.documents), samples):
            ids = shards.document(index)
            pieces = "|".join(decode([token]) for token in ids[:_PREVIEW_TOKENS].tolist())
            shown.append([split, index, len(ids), repr(pieces)[1:-1]])
    columns = ["split", "documents", "tokens", "bytes of text", "bytes per token", "shards"]
    return [
        Table("Tokens", columns, counts),
        Table("First tokens", ["split", "document", "tokens", "pieces"], shown),
    ]
