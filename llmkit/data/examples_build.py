"""From candidates to splits: every example that comes in is kept or dropped for a reason, and the counts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from llmkit.data.examples import Conversation, Example, LabelledText, TaggedText
from llmkit.store.files import sha256_json
from llmkit.store.splits import SPLITS, Split, Splits, split_of


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A row of which no example can be made.

    Args:
        detail: where it is and what is wrong with it ("rows.csv:3: ...").
        text: the beginning of what was read of it, as JSON.
    """

    detail: str
    text: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """An example that may be kept, or the reason why there is none.

    Args:
        group: key of its split; candidates with one key are never divided over splits.
        example: the example, or None.
        reason: why it is dropped, where there is no example.
        task: the task that it is counted under.
        part: the held-out split from which it was read, where the source has its own; None where `group` decides.
        broken: what is wrong with a row of which no example can be made.
    """

    group: str
    example: Example | None
    reason: str = ""
    task: str = ""
    part: Split | None = None
    broken: BrokenRow | None = None


@dataclass
class Built:
    """Examples by split, and what became of every candidate.

    Args:
        splits: the examples of each split in the order in which they came.
        incoming: candidates by task.
        dropped: dropped candidates by task and reason.
        broken: rows of which no example can be made.
    """

    splits: dict[Split, list[Example]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    incoming: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    broken: list[BrokenRow] = field(default_factory=list)

    def drop(self, candidate: Candidate, reason: str) -> None:
        """Count a candidate as dropped."""
        self.dropped.setdefault(candidate.task, Counter())[reason] += 1
        if candidate.broken is not None:
            self.broken.append(candidate.broken)

    def report(self) -> dict[str, Any]:
        """Counts for `report.json`: `in` = `kept` + all of `dropped`, overall and for each task."""
        kept = {split: len(rows) for split, rows in self.splits.items()}
        total: Counter[str] = Counter()
        for reasons in self.dropped.values():
            total.update(reasons)
        report: dict[str, Any] = {
            "in": sum(self.incoming.values()),
            "kept": sum(kept.values()),
            "dropped": dict(sorted(total.items())),
        }
        if set(self.incoming) != {""}:
            report["tasks"] = {task: self._task_report(task) for task in sorted(self.incoming)}
        report["splits"] = {split: split_report(rows) for split, rows in self.splits.items()}
        return report

    def _task_report(self, task: str) -> dict[str, Any]:
        dropped = dict(sorted(self.dropped.get(task, Counter()).items()))
        came = self.incoming[task]
        return {"in": came, "kept": came - sum(dropped.values()), "dropped": dropped}


def split_report(rows: list[Example]) -> dict[str, Any]:
    """Rows of a split: how many, by task and by label, and the share of the most frequent label. Labels of words are
    counted by word."""
    report: dict[str, Any] = {"rows": len(rows)}
    tasks = Counter(row.task for row in rows if row.task is not None)
    if tasks:
        report["tasks"] = dict(sorted(tasks.items()))
    labels = Counter(label for row in rows for label in labels_of(row))
    if labels:
        label, count = min(labels.items(), key=lambda pair: (-pair[1], pair[0]))
        report["labels"] = dict(sorted(labels.items()))
        report["majority"] = {"label": label, "share": count / labels.total()}
    return report


def labels_of(example: Example) -> list[str]:
    """The labels of a text or of its words; none where it has none."""
    if isinstance(example, TaggedText):
        return example.labels
    return [example.label] if isinstance(example, LabelledText) else []


def build(parts: Iterable[Iterable[Candidate]], fractions: Splits, limit: int | None = None) -> Built:
    """Divide candidates into splits, dropping exact duplicates and what a held-out part of the source holds as well.

    Args:
        parts: candidates of each part of the source; its own test and validation parts, if any, come first.
        fractions: what is held out of the candidates that belong to no such part.
        limit: examples to keep of each part; a part is not read further than that.
    """
    built = Built()
    seen: set[str] = set()
    held_out: dict[str, Split] = {}
    for candidates in parts:
        kept = 0
        for candidate in candidates:
            kept += _place(candidate, fractions, built, seen, held_out)
            if kept == limit:
                break
    return built


def _place(candidate: Candidate, fractions: Splits, built: Built, seen: set[str], held_out: dict[str, Split]) -> bool:
    """Put a candidate into its split, or count why not; whether it was kept."""
    built.incoming[candidate.task] += 1
    if candidate.example is None:
        built.drop(candidate, candidate.reason)
        return False
    content = _content_digest(candidate.example)
    if content in seen:
        built.drop(candidate, "duplicate")
        return False
    split = candidate.part or split_of(candidate.group, fractions)
    if held_out.get(candidate.group, split) != split:
        built.drop(candidate, f"held out for {held_out[candidate.group]}")
        return False
    if candidate.part is not None:
        held_out[candidate.group] = split
    seen.add(content)
    built.splits[split].append(candidate.example)
    return True


def _content_digest(example: Example) -> str:
    """Digest of what an example says, its name and metadata left out."""
    if isinstance(example, Conversation):
        return sha256_json(["conversation", example.messages])
    if isinstance(example, LabelledText):
        return sha256_json(["label", example.text, example.label])
    if isinstance(example, TaggedText):
        return sha256_json(["tags", example.words, example.labels])
    return sha256_json(["preference", example.prompt, example.chosen, example.rejected])
