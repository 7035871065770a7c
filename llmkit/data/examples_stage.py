"""The stage `examples`: rows from a source, without duplicates, in splits that share no object or prompt."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from llmkit.config.base import Facts, Finding
from llmkit.console import warn
from llmkit.data.examples import Conversation, Example, LabelledText, TaggedText, remaining_fractions, write_examples
from llmkit.data.examples_build import Built, build, labels_of
from llmkit.data.examples_config import DatasetRowsSource, ExamplesConfig, FilesSource, PythonSource, RowsSource
from llmkit.data.examples_sources import candidate_parts, dataset_records, record_parts, row_problem
from llmkit.data.python_objects import library_folder
from llmkit.errors import DataError
from llmkit.store.attempts import start_over
from llmkit.store.files import write_json_atomic
from llmkit.store.splits import SPLITS
from llmkit.store.stage import Context, Outcome

REPORT = "report.json"
QUARANTINE = "quarantine.jsonl"
_ROWS_LOOKED_AT = 100


def check(config: ExamplesConfig, context: Context) -> list[Finding]:
    """What a look at the first rows of each part of the source finds wrong."""
    source = config.source
    if isinstance(source, PythonSource):
        return list(_check_library())
    return list(_check_rows(source, context))


def _check_library() -> Iterator[Finding]:
    if not (library_folder() / "textwrap.py").is_file():
        yield Finding(
            f"the source of Python's standard library is not in {library_folder()}.",
            key="source",
            hint="Use a Python that is installed with its library as files.",
        )


def _check_rows(source: RowsSource, context: Context) -> Iterator[Finding]:
    if isinstance(source, DatasetRowsSource):
        for split, name in source.parts().items():
            problem = row_problem(source, [dataset_records(source, name, streaming=True)], 1)
            if problem is not None:
                yield Finding(problem, key="source.split" if split == "train" else f"source.{split}")
    else:
        assert isinstance(source, FilesSource)
        for split, files in record_parts(source, context):
            problem = row_problem(source, files, _ROWS_LOOKED_AT)
            if problem is not None:
                yield Finding(problem, key="source.files" if split == "train" else f"source.{split}")


def run(config: ExamplesConfig, context: Context) -> Outcome:
    """Write `train.jsonl`, `validation.jsonl`, `test.jsonl`, `report.json`, and `quarantine.jsonl` where there are rows
    of which no example can be made.

    Raises:
        DataError: a row is malformed, or nothing is left for training.
    """
    started = time.monotonic()
    start_over(context.directory)
    own_parts = [] if isinstance(config.source, PythonSource) else list(config.source.parts())
    built = build(candidate_parts(config, context), remaining_fractions(config.splits, own_parts), config.limit)
    report = built.report()
    write_json_atomic(context.directory / REPORT, report)
    if built.broken:
        lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in built.broken)
        (context.directory / QUARANTINE).write_text("".join(lines), encoding="utf-8")
    if not built.splits["train"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items()) or "none"
        raise DataError(
            f"no example is left for training: {report['in']:,} came in; dropped: {reasons}.",
            where=context.place("source"),
        )
    for split in SPLITS:
        write_examples(context.directory / f"{split}.jsonl", built.splits[split])
    _warn_of_gaps(config, context, built)
    return Outcome(
        content=[f"{split}.jsonl" for split in SPLITS],
        facts=Facts("examples", _properties(built)),
        summary={
            "seconds": round(time.monotonic() - started, 3),
            "examples": report["kept"],
            "dropped": report["in"] - report["kept"],
            **{split: len(rows) for split, rows in built.splits.items()},
        },
    )


def _properties(built: Built) -> dict[str, Any]:
    labels = _labels(row for rows in built.splits.values() for row in rows)
    return {
        "format": _format_of(built.splits["train"][0]),
        "splits": [split for split in SPLITS if built.splits[split]],
        **({"labels": sorted(labels)} if labels else {}),
    }


def _format_of(example: Example) -> str:
    if isinstance(example, Conversation):
        return "conversations"
    if isinstance(example, TaggedText):
        return "tags"
    return "labels" if isinstance(example, LabelledText) else "preferences"


def _labels(rows: Iterator[Example]) -> set[str]:
    return {label for row in rows for label in labels_of(row)}


def _warn_of_gaps(config: ExamplesConfig, context: Context, built: Built) -> None:
    for split in config.split_names():
        if not built.splits[split]:
            warn(f"{context.place('splits')}: the split `{split}` gets no example of so few.")
    unseen = _labels(row for split in ("validation", "test") for row in built.splits[split]) - _labels(
        iter(built.splits["train"])
    )
    for label in sorted(unseen):
        warn(f"{context.place('source')}: the label `{label}` occurs in held-out splits and never in training.")
