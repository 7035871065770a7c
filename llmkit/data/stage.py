"""The stage `data`: collect, clean, split, write, and account for every record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from llmkit.config.base import Facts, Finding
from llmkit.console import progress
from llmkit.data.cleaning.pipeline import Cleaning, DroppedDocument, cleaning_steps
from llmkit.data.config import DataConfig
from llmkit.data.sources.base import read_all
from llmkit.data.sources.config import SourceConfig
from llmkit.data.sources.registry import open_reader
from llmkit.errors import DataError
from llmkit.store.attempts import start_over
from llmkit.store.documents import COLUMNS, DOCUMENTS, Document, DocumentWriter, ParquetFiles, document_row
from llmkit.store.files import write_json_atomic
from llmkit.store.splits import SPLITS, Split, Splits, split_of
from llmkit.store.stage import Context, Outcome

DROPPED = "dropped"
DROPPED_COLUMNS = (*COLUMNS, "step", "reason", "detail")
REPORT = "report.json"


def check(config: DataConfig, context: Context) -> list[Finding]:
    """What a quick look at every source finds wrong: nothing matches, columns that are not there, no network."""
    return [
        replace(finding, key=f"sources.{index}.{finding.key}")
        for index, source in enumerate(config.sources)
        for finding in open_reader(source).check()
    ]


def run(config: DataConfig, context: Context) -> Outcome:
    """Write `documents/`, `dropped/` and `report.json`.

    Raises:
        DataError: a source breaks off in a way that leaves unknown what is missing, or nothing is left for training.
    """
    started = time.monotonic()
    start_over(context.directory)
    cleaning = Cleaning(cleaning_steps(config.cleaning))
    sizes = dict.fromkeys(SPLITS, 0)
    with (
        DocumentWriter(context.directory) as kept,
        ParquetFiles(context.directory / DROPPED, DROPPED, DROPPED_COLUMNS) as dropped,
        progress(f"{context.name}: documents") as bar,
    ):
        for index, source in enumerate(config.sources):
            for batch in _cleaned(cleaning, source, context.place(f"sources.{index}")):
                for found in batch:
                    if isinstance(found, DroppedDocument):
                        row = [*document_row(found.document), found.step, found.reason, found.detail]
                        dropped.write(row)
                    else:
                        document = replace(found, split=document_split(found, source, config.splits))
                        kept.write(document)
                        sizes[document.split] += len(document.text.encode())
                bar.advance(len(batch), note=source.label)
    report = cleaning.report()
    report["splits"] = {split: {"documents": kept.counts[split], "bytes": sizes[split]} for split in SPLITS}
    write_json_atomic(context.directory / REPORT, report)
    if kept.counts["train"] == 0:
        raise DataError(_nothing_left(report), where=context.place("sources"), hint="Loosen `cleaning` or `splits`.")
    return Outcome(
        content=[f"{DOCUMENTS}/*.parquet"],
        facts=Facts("documents", {"splits": [split for split in SPLITS if kept.counts[split]]}),
        summary=_summary(report, time.monotonic() - started),
    )


def document_split(document: Document, source: SourceConfig, fractions: Splits) -> Split:
    """The split of a document: by what its source names as the split key, or by the digest of its text.

    A document that does not have the metadata named goes by the digest of its text.
    """
    if source.split_key == "path":
        key = document.path
    elif source.split_key is not None:
        key = document.metadata.get(source.split_key, document.id)
    else:
        key = document.id
    return split_of(key, fractions)


def _cleaned(cleaning: Cleaning, source: SourceConfig, place: str) -> Iterator[list[Document | DroppedDocument]]:
    records = islice(read_all(open_reader(source)), source.limit)
    try:
        yield from cleaning.run(source.label, records)
    except DataError as error:
        raise DataError(error.message, where=place, hint=error.hint) from None


def _nothing_left(report: Mapping[str, Any]) -> str:
    total = report["total"]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in total["dropped"].items()) or "none"
    return f"no document is left for training: {total['in']:,} read, {total['kept']:,} kept; dropped: {reasons}."


def _summary(report: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    total = report["total"]
    return {
        "seconds": round(seconds, 3),
        "documents": total["kept"],
        "dropped": total["in"] - total["kept"],
        "bytes": total["bytes_kept"],
    }
