"""What is in documents and in token shards, as small tables for people.

However large a corpus is, no more than some row groups of it are in memory.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.console import Marked
from llmkit.data.corpus.census import over_sources
from llmkit.data.corpus.counts import READ
from llmkit.data.shards import INDEX, TokenShards
from llmkit.data.stage import DROPPED, QUARANTINE, REPORT
from llmkit.store.documents import document_files
from llmkit.store.splits import SPLITS

_PREVIEW_CHARACTERS = 160
_PREVIEW_TOKENS = 48
_LANGUAGES = 20
_NOT_TEXT = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_REPLACEMENT = "\ufffd"
_CHARACTER_TOKENS = 4
"""Most tokens of a character: it has no more bytes."""
Decode = Callable[[Sequence[int]], str]
"""Text of token ids, special tokens included."""


@dataclass(frozen=True)
class Table:
    """A title, names of columns, and rows of plain values or `Marked` ones; `bars` names a column to draw as bars."""

    title: str
    columns: list[str]
    rows: list[list[Any]]
    bars: str | None = None


def visible(text: str) -> str:
    """A text whose control characters, newlines apart, are written as escapes: none of them reaches a terminal."""
    return _NOT_TEXT.sub(lambda found: repr(found[0])[1:-1], text)


def preview(text: str) -> str:
    """The beginning of a text on one line."""
    line = visible(" ".join(text[: 2 * _PREVIEW_CHARACTERS].split()))
    return line if len(line) <= _PREVIEW_CHARACTERS else line[: _PREVIEW_CHARACTERS - 1] + "…"


def summarize_documents(directory: Path, samples: int = 3) -> list[Table]:
    """Documents by source and split, what each step kept and dropped, lengths, languages, measures, and samples.

    Args:
        directory: an artifact of documents.
        samples: documents shown of each split and of each reason, and pairs of duplicates of each method.

    Raises:
        ArtifactError: there are no documents here.
    """
    from llmkit.data.inspect_duplicates import duplicates_beside
    from llmkit.data.inspect_measures import measures_of

    tables = [_counts(directory)]
    report = directory / REPORT
    if report.is_file():
        found = json.loads(report.read_text(encoding="utf-8"))
        total = over_sources(found["census"])
        tables += [_sources(found), _steps(found), _lengths(total), _languages(total)]
    tables += measures_of(directory)
    tables += [_kept(directory, samples), _gone(directory, samples), duplicates_beside(directory, samples)]
    return [table for table in tables if table.rows]


def _counts(directory: Path) -> Table:
    import pyarrow.parquet as pq

    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for split in SPLITS:
        for file in document_files(directory, split):
            for source in pq.read_table(file, columns=["source"]).column("source").value_counts().to_pylist():
                counts[source["values"]][split] += source["counts"]
    rows = [[source, *(found[split] for split in SPLITS), found.total()] for source, found in sorted(counts.items())]
    return Table("Documents", ["source", *SPLITS, "all"], rows)


def _sources(report: Mapping[str, Any]) -> Table:
    rows = [
        [
            source,
            section["in"],
            sum(section["quarantined"].values()),
            sum(section["dropped"].values()),
            section["kept"],
            section["bytes_kept"],
        ]
        for source, section in [*report["sources"].items(), ("all", report["total"])]
    ]
    return Table("Sources", ["source", "read", "unreadable", "dropped", "kept", "bytes kept"], rows)


def _steps(report: Mapping[str, Any]) -> Table:
    rows = []
    for step, counts in report["total"]["steps"].items():
        gone = {**counts["quarantined"], **counts["dropped"]}
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in gone.items())
        rows.append([step, counts["in"], counts["changed"], counts["kept"], reasons])
    return Table("Steps", ["step", "in", "changed", "kept", "dropped"], rows)


def _lengths(total: Mapping[str, Any]) -> Table:
    """Documents by length: each row is twice as long as the one before, those between that hold none included."""
    found = {int(length): count for length, count in total["lengths"].items()}
    longest = max(found, default=0)
    length = next((length for length in sorted(found) if length), longest)
    lengths = [0] if 0 in found else []
    while 0 < length <= longest:
        lengths.append(length)
        length *= 2
    rows = [[f"{least:,} to {max(2 * least - 1, 0):,}", found.get(least, 0)] for least in lengths]
    return Table("Lengths", ["characters", "documents"], rows, bars="documents")


def _languages(total: Mapping[str, Any]) -> Table:
    ranked = list(total["languages"].items())
    rows = [[name or "(not recorded)", entry["documents"], entry["bytes"]] for name, entry in ranked[:_LANGUAGES]]
    rest = [entry for _, entry in ranked[_LANGUAGES:]]
    if rest:
        sums = [sum(entry[key] for entry in rest) for key in ("documents", "bytes")]
        rows.append([f"({len(rest)} others)", *sums])
    return Table("Languages", ["language", "documents", "bytes"], rows, bars="documents")


def _kept(directory: Path, samples: int) -> Table:
    import pyarrow.parquet as pq

    rows = []
    for split in SPLITS:
        files = document_files(directory, split)
        groups = [(file, group) for file in files for group in range(pq.read_metadata(file).num_row_groups)]
        for file, group in _spread(groups, samples):
            with pq.ParquetFile(file) as opened:
                batches = opened.iter_batches(1, row_groups=[group], columns=["source", "path", "text"])
                first = next(batches).to_pylist()[0]
            rows.append([split, first["source"], first["path"], len(first["text"]), preview(first["text"])])
    return Table("Samples", ["split", "source", "path", "characters", "text"], rows)


def _spread(items: Sequence[Any], count: int) -> Iterator[Any]:
    """Up to `count` items, evenly spread, the first among them."""
    taken = min(count, len(items))
    return (items[index * len(items) // taken] for index in range(taken))


def _gone(directory: Path, samples: int) -> Table:
    """Some records for each reason for which there is no document: quarantined ones first, then dropped ones."""
    shown: dict[tuple[str, str], list[list[Any]]] = defaultdict(list)
    columns = ["reason", "source", "path", "detail", "text"]
    for folder in (QUARANTINE, DROPPED):
        keys = ["step", "reason"] if folder == DROPPED else ["reason"]

        def wanted(row: Mapping[str, Any]) -> bool:
            found = shown[row.get("step", READ), row["reason"]]
            if len(found) >= samples:
                return False
            found.append([])
            return True

        for row in matching_rows(sorted((directory / folder).glob("*.parquet")), keys, wanted, [*keys, *columns]):
            values = [*(visible(row[name]) for name in columns[:-1]), preview(row["text"])]
            next(slot for slot in shown[row.get("step", READ), row["reason"]] if not slot).extend(values)
    return Table("Samples of what was dropped", columns, [row for found in shown.values() for row in found])


def matching_rows(
    files: Sequence[Path], keys: Sequence[str], wanted: Callable[[Mapping[str, Any]], bool], columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Rows of Parquet files, a row group at a time, of which nothing but the keys is read where no row is wanted.

    Args:
        files: the files in order.
        keys: columns, of short values, by which rows are chosen.
        wanted: asked of each row's keys, in order.
        columns: columns to give of the rows that are wanted.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files:
        with pq.ParquetFile(file) as opened:
            for group in range(opened.num_row_groups):
                rows = opened.read_row_group(group, columns=list(keys), use_threads=False).to_pylist()
                places = [index for index, row in enumerate(rows) if wanted(row)]
                if places:
                    table = opened.read_row_group(group, columns=list(dict.fromkeys(columns)), use_threads=False)
                    yield from table.take(pa.array(places)).to_pylist()


def summarize_tokens(directory: Path, decode: Decode, samples: int = 3) -> list[Table]:
    """Counts by split, and the first tokens of some documents.

    Args:
        directory: an artifact of tokens.
        decode: gives the text of tokens.
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
            shown.append([split, index, len(ids), marked_tokens(ids[:_PREVIEW_TOKENS].tolist(), decode)])
    columns = ["split", "documents", "tokens", "bytes of text", "bytes per token", "shards"]
    return [
        Table("Tokens", columns, counts),
        Table("First tokens", ["split", "document", "tokens", "pieces"], shown),
    ]


def marked_tokens(
    ids: Sequence[int],
    decode: Decode,
    learned: Sequence[int] = (),
    *,
    break_lines: bool = False,
) -> Marked:
    """Tokens as text, each apart from its neighbours; those that hold a character together stand as one piece.

    Args:
        ids: the tokens.
        decode: gives the text of tokens.
        learned: for each token whether the loss is taken on it; by default on none.
        break_lines: whether to go to the next line behind a newline.
    """
    pieces: list[tuple[str, str]] = []
    begin = 0
    while begin < len(ids):
        text, end = _whole_characters(ids, begin, decode)
        text = visible(text).replace("\n", "\\n\n" if break_lines else "\\n")
        pieces.append((text, "learned" if learned and learned[begin] else "token"))
        begin = end
    return Marked(tuple(pieces), between="|")


def _whole_characters(ids: Sequence[int], begin: int, decode: Decode) -> tuple[str, int]:
    """Text of the fewest tokens from one on that are whole characters, or of that token, and where they end."""
    alone = decode(ids[begin : begin + 1])
    text = alone
    for end in range(begin + 1, min(begin + _CHARACTER_TOKENS, len(ids)) + 1):
        text = decode(ids[begin:end])
        if _REPLACEMENT not in text:
            return text, end
    return alone, begin + 1
