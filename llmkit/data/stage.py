"""The stage `data`: collect, clean, split, write, and account for every record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmkit.config.base import Facts, Finding
from llmkit.data.card.gaps import known_gaps
from llmkit.data.card.page import CARD, data_card
from llmkit.data.config import DataConfig
from llmkit.data.corpus.build import make_corpus
from llmkit.data.corpus.measuring import close_filters
from llmkit.data.corpus.reading import DROPPED, QUARANTINE
from llmkit.data.execution.cache import Cache
from llmkit.data.execution.engine import Engine, open_engine
from llmkit.data.execution.sharing import WorkIsOverError, remove_signs
from llmkit.data.modelled.check import check_inputs
from llmkit.data.sources.registry import open_reader
from llmkit.errors import DataError
from llmkit.store.attempts import start_over
from llmkit.store.documents import DOCUMENTS
from llmkit.store.files import write_json_atomic, write_text_atomic
from llmkit.store.stage import Context, Outcome

__all__ = ["DROPPED", "QUARANTINE", "REPORT", "check", "run"]

REPORT = "report.json"


def check(config: DataConfig, context: Context) -> list[Finding]:
    """What a quick look at every source finds wrong (nothing matches, columns that are not there, no network), and at
    what filters read."""
    found = [
        replace(finding, key=f"sources.{index}.{finding.key}")
        for index, source in enumerate(config.sources)
        for finding in open_reader(source).check()
    ]
    return [*found, *check_inputs(config.cleaning, "cleaning", context.inputs)]


def run(config: DataConfig, context: Context) -> Outcome:
    """Write `documents/`, `dropped/`, `quarantine/`, `report.json` and the data card.

    Raises:
        DataError: a source breaks off in a way that leaves unknown what is missing, or nothing is left for training.
    """
    started = time.monotonic()
    start_over(context.directory)
    with _engine(config, context) as engine:
        corpus = make_corpus(engine, config, context)
        corpus.put(context.directory)
        engine.wait_for_others()
    report = {**corpus.report, "gaps": known_gaps(config, corpus.report)}
    write_json_atomic(context.directory / REPORT, report)
    if report["splits"]["train"]["documents"] == 0:
        raise DataError(_nothing_left(report), where=context.place("sources"), hint="Loosen `cleaning` or `splits`.")
    write_text_atomic(context.directory / CARD, data_card(context.name, config, report, context.inputs))
    _tidy(config, engine)
    return Outcome(
        content=[f"{DOCUMENTS}/*.parquet"],
        facts=Facts("documents", {"splits": [split for split, row in report["splits"].items() if row["documents"]]}),
        summary=_summary(report, time.monotonic() - started),
    )


def share(config: DataConfig, context: Context) -> None:
    """Do the part of `context.shard` in the tasks, and write nothing but their results.

    Raises:
        DataError: as `run`.
    """
    with suppress(WorkIsOverError), _engine(config, context) as engine:
        make_corpus(engine, config, context)


@contextmanager
def _engine(config: DataConfig, context: Context) -> Iterator[Engine]:
    cache = Cache(work_folder(config, context))
    cache.clear_unfinished()
    try:
        with open_engine(config.executor, cache, context.name, context.shard) as engine:
            yield engine
    finally:
        close_filters()


def work_folder(config: DataConfig, context: Context) -> Path:
    """Where results of tasks are kept."""
    if config.work.folder is not None:
        return Path(config.work.folder)
    return context.directory.parent / f".{context.name}.work"


def _tidy(config: DataConfig, engine: Engine) -> None:
    """Remove what is wanted no more: everything, or what other settings have left in the stage's own folder."""
    remove_signs(engine.cache.root, engine.name)
    if not config.work.keep:
        engine.cache.remove(engine.used)
    elif config.work.folder is None:
        engine.cache.keep_only(engine.used)


def _nothing_left(report: Mapping[str, Any]) -> str:
    total = report["total"]
    gone = {**total["dropped"], **{f"quarantined ({name})": count for name, count in total["quarantined"].items()}}
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in gone.items()) or "none"
    return f"no document is left for training: {total['in']:,} read, {total['kept']:,} kept; dropped: {reasons}."


def _summary(report: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    total = report["total"]
    return {
        "seconds": round(seconds, 3),
        "documents": total["kept"],
        "dropped": sum(total["dropped"].values()),
        "quarantined": sum(total["quarantined"].values()),
        "bytes": total["bytes_kept"],
    }
