"""What is in labelled examples, as small tables for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from llmkit.data.examples import Conversation, Example, LabelledText, TaggedText, split_examples
from llmkit.data.examples_stage import REPORT
from llmkit.data.inspect import Table, preview
from llmkit.store.stage import ResolvedInput

Rows = Mapping[str, list[Example]]


def summarize_examples(source: ResolvedInput, samples: int = 3) -> list[Table]:
    """Examples by split, task and label, what was dropped, and samples.

    Args:
        source: an artifact of examples, or someone's own files.
        samples: examples shown of each split, spread evenly over it.

    Raises:
        DataError: a file is missing or a row is malformed.
    """
    kind, rows = split_examples(source)
    tables = [_counts(rows)]
    report = source.path / REPORT
    if source.artifact is not None and report.is_file():
        tables.append(_dropped(json.loads(report.read_text(encoding="utf-8"))))
    return [*tables, _samples(rows, kind, samples)]


def _counts(rows: Rows) -> Table:
    counts: dict[tuple[str, str], Counter[str]] = {}
    for split, examples in rows.items():
        for example in examples:
            label = example.label if isinstance(example, LabelledText) else ""
            counts.setdefault((example.task or "", label), Counter())[split] += 1
    body: list[list[Any]] = [
        [task, label, *[found[split] for split in rows]] for (task, label), found in counts.items()
    ]
    body.sort()
    body.append(["all", "", *[len(examples) for examples in rows.values()]])
    return Table("Examples", ["task", "label", *rows], body)


def _dropped(report: dict[str, Any]) -> Table:
    body = [["came in", report["in"]], ["kept", report["kept"]]]
    body += [[f"dropped: {reason}", count] for reason, count in report["dropped"].items()]
    return Table("What came in", ["", "rows"], body)


def _samples(rows: Rows, kind: str, samples: int) -> Table:
    columns = {
        "conversations": ["prompt", "answer"],
        "labels": ["text", "label"],
        "tags": ["words", "labels"],
        "preferences": ["prompt", "chosen", "rejected"],
    }[kind]
    body = []
    for split, examples in rows.items():
        step = max(1, len(examples) // max(1, samples))
        body += [[split, *map(preview, _shown(example))] for example in examples[::step][:samples]]
    return Table("Samples", ["split", *columns], body)


def _shown(example: Example) -> list[str]:
    if isinstance(example, LabelledText):
        return [example.text, example.label]
    if isinstance(example, TaggedText):
        return [" ".join(example.words), " ".join(example.labels)]
    asked = " / ".join(f"{message['role']}: {message['content']}" for message in example.prompt)
    return (
        [asked, example.reference] if isinstance(example, Conversation) else [asked, example.chosen, example.rejected]
    )
