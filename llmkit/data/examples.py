"""Examples: conversations, labelled texts, labelled words and preferences, as every later stage reads them.

On disk an example is one JSON object a line of `train.jsonl`, `validation.jsonl` or `test.jsonl`:

- conversations: `{"id", "messages": [{"role", "content"}, ...], "task"?}`; the last message is the assistant's, the
  reference answer;
- labels: `{"id", "text", "label"}`;
- tags: `{"id", "tokens", "labels"}`, a text's words and a label for each;
- preferences: `{"id", "prompt": [{"role", "content"}, ...], "chosen", "rejected", "task"?}`.

Keys beside these are kept as metadata. Someone's own files in the formats of `llmkit.data.examples_formats` are read by
the same functions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit.data.examples_formats import ColumnNames, detect_format, kind_of_format, normalize
from llmkit.data.records import ENDINGS, FileRecord, read_records
from llmkit.data.sources.files import find_files
from llmkit.errors import ArtifactError, DataError
from llmkit.store.files import canonical_json, sha256_json
from llmkit.store.splits import SPLITS, Splits, split_of
from llmkit.store.stage import ResolvedInput

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""

FILE_SPLITS = Splits(validation=0.05, test=0.05)
"""What is held out of a file that comes without a validation part."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, the last of which is the assistant's.

    Args:
        id: name of the example, unique in its artifact.
        messages: at most one system message, first; then what user and assistant say.
        task: name of the task, where the example belongs to one.
        metadata: whatever else the row says.
    """

    id: str
    messages: list[Message]
    task: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> list[Message]:
        """The messages before the reference answer."""
        return self.messages[:-1]

    @property
    def reference(self) -> str:
        """The reference answer: what the assistant says last."""
        return self.messages[-1]["content"]

    def group(self) -> str:
        """Key of the split: examples with one prompt stay together, whatever their answers."""
        return _digest(self.prompt)

    def to_row(self) -> dict[str, Any]:
        """The row as it stands on disk."""
        return _row({"id": self.id, "messages": self.messages}, self.task, self.metadata)


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and the class that it belongs to."""

    id: str
    text: str
    label: str
    task: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def group(self) -> str:
        """Key of the split: equal texts stay together."""
        return _digest(self.text)

    def to_row(self) -> dict[str, Any]:
        """The row as it stands on disk."""
        return _row({"id": self.id, "text": self.text, "label": self.label}, self.task, self.metadata)


@dataclass(frozen=True, slots=True)
class TaggedText:
    """The words of a text, and the label of each."""

    id: str
    words: list[str]
    labels: list[str]
    task: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def group(self) -> str:
        """Key of the split: equal texts stay together."""
        return _digest(self.words)

    def to_row(self) -> dict[str, Any]:
        """The row as it stands on disk."""
        return _row({"id": self.id, "tokens": self.words, "labels": self.labels}, self.task, self.metadata)


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt and two answers, the first of which is the better one."""

    id: str
    prompt: list[Message]
    chosen: str
    rejected: str
    task: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def group(self) -> str:
        """Key of the split: pairs of one prompt stay together."""
        return _digest(self.prompt)

    def to_row(self) -> dict[str, Any]:
        """The row as it stands on disk."""
        values = {"id": self.id, "prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}
        return _row(values, self.task, self.metadata)


Example = Conversation | LabelledText | TaggedText | Preference


def _row(values: dict[str, Any], task: str | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, **({"task": task} if task is not None else {}), **metadata}


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def read_conversations(source: ResolvedInput, split: str) -> list[Conversation]:
    """Conversations of one split.

    Args:
        source: an artifact of examples; or a file, a folder or a pattern of files in any format of conversations. In a
            folder, files named after the splits (`train.*`, `validation.*`, `test.*`) are these splits; a split that
            is not there is taken out of the rest, 5% of it by the digest of the prompt.
        split: "train", "validation" or "test".

    Raises:
        DataError: a row is malformed or of another kind; the message names file, line and what is wrong.
    """
    return [found for found in _read(source, split, "conversations", None) if isinstance(found, Conversation)]


def read_labels(source: ResolvedInput, split: str, *, text: str = "text", label: str = "label") -> list[LabelledText]:
    """Labelled texts of one split; see `read_conversations`.

    Args:
        source: an artifact of examples, or files with a column for the text and one for the label.
        split: "train", "validation" or "test".
        text: name of the text's column in someone's own files; an artifact's is always "text".
        label: name of the label's column in someone's own files.
    """
    columns = None if source.artifact is not None else ColumnNames(text=text, label=label)
    return [found for found in _read(source, split, "labels", columns) if isinstance(found, LabelledText)]


def read_tags(source: ResolvedInput, split: str) -> list[TaggedText]:
    """Texts with labelled words of one split; see `read_conversations`."""
    return [found for found in _read(source, split, "tags", None) if isinstance(found, TaggedText)]


def read_preferences(source: ResolvedInput, split: str) -> list[Preference]:
    """Preferences of one split; see `read_conversations`."""
    return [found for found in _read(source, split, "preferences", None) if isinstance(found, Preference)]


def split_examples(source: ResolvedInput) -> tuple[str, dict[str, list[Example]]]:
    """All examples of a source, whatever their kind.

    Returns:
        the kind ("conversations", "labels", "tags" or "preferences"), and the examples by split.

    Raises:
        DataError: there are no rows, or one is malformed.
    """
    kind = _kind(source)
    return kind, {split: list(_read(source, split, kind, None)) for split in SPLITS}


def iterate_examples(source: ResolvedInput, split: str) -> Iterator[Example]:
    """Examples of one split, whatever their kind, one after another.

    Raises:
        DataError: as `split_examples`.
    """
    return _read(source, split, _kind(source), None)


def _kind(source: ResolvedInput) -> str:
    found: str = source.facts.get("format") or _kind_of_files(source.path)
    return found


def _kind_of_files(path: Path) -> str:
    for file in files_by_split(path)["train"]:
        for record in read_records(file):
            if record.problem is not None:
                raise DataError(record.problem, where=record.place)
            return kind_of_format(detect_format(record, ColumnNames(), ""))
    raise DataError("there is no row in it.", where=str(path))


def _read(source: ResolvedInput, split: str, kind: str, columns: ColumnNames | None) -> Iterator[Example]:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    if source.artifact is not None:
        yield from _read_artifact(source, split, kind)
        return
    parts = files_by_split(source.path)
    fractions = remaining_fractions(FILE_SPLITS, parts)
    for part in dict.fromkeys((split, "train")):
        for example in examples_of_files(parts.get(part, []), kind, columns=columns):
            if (split_of(example.group(), fractions) if part == "train" else part) == split:
                yield example


def remaining_fractions(fractions: Splits, parts: Iterable[str]) -> Splits:
    """What is held out of the training part when validation or test come as parts of their own."""
    given = set(parts)
    return Splits(
        validation=0.0 if "validation" in given else fractions.validation,
        test=0.0 if "test" in given else fractions.test,
    )


def _read_artifact(source: ResolvedInput, split: str, kind: str) -> Iterator[Example]:
    found = source.facts.get("format")
    if found is not None and found != kind:
        raise ArtifactError(f"the examples are {found}, and {kind} are wanted here.", where=str(source.path))
    file = source.path / f"{split}.jsonl"
    if not file.is_file():
        raise ArtifactError(f"the artifact has no file `{file.name}`.", where=str(source.path))
    yield from examples_of_files([file], kind)


def files_by_split(path: Path) -> dict[str, list[Path]]:
    """The files that a path names, by split.

    Args:
        path: a file, a folder, or a pattern with `*`.

    Returns:
        files in the order of their names; everything is "train" unless the path is a folder whose files are named
        after the splits.

    Raises:
        DataError: no file of a known format is there.
    """
    files = [Path(found.path) for found in find_files([str(path)], ENDINGS)]
    if not files:
        raise DataError("there is no file of examples here.", where=str(path), hint=f"Endings: {', '.join(ENDINGS)}.")
    named: dict[str, list[Path]] = {
        split: [file for file in files if file.name.partition(".")[0] == split] for split in SPLITS
    }
    found = {split: members for split, members in named.items() if members}
    return found if path.is_dir() and "train" in found else {"train": files}


def examples_of_files(
    files: Iterable[Path],
    kind: str,
    *,
    format: str = "auto",
    columns: ColumnNames | None = None,
    header: bool = True,
) -> Iterator[Example]:
    """Examples of files in order.

    Args:
        files: the files; each is in one format.
        kind: what the examples have to be: "conversations", "labels", "tags" or "preferences".
        format: a name of `llmkit.data.examples_formats.FORMATS`, or "auto" to tell it by each file's first row.
        columns: names of columns where they are not the usual ones.
        header: whether the first line of a CSV or TSV file names the columns.

    Raises:
        DataError: a row is malformed or of another kind.
    """
    for file in files:
        yield from examples_of_records(read_records(file, header=header), kind, format=format, columns=columns)


def examples_of_records(
    records: Iterable[FileRecord], kind: str, *, format: str = "auto", columns: ColumnNames | None = None
) -> Iterator[Example]:
    """Examples of records; see `examples_of_files`."""
    chosen = format
    for record in records:
        if chosen == "auto" and record.problem is not None:
            raise DataError(record.problem, where=record.place)
        if chosen == "auto":
            chosen = detect_format(record, columns or ColumnNames(), wanted=kind)
        if kind_of_format(chosen) != kind:
            raise DataError(f"the row is one of {kind_of_format(chosen)}, and {kind} are wanted.", where=record.place)
        yield example_of(record, chosen, columns or ColumnNames())


def example_of(record: FileRecord, format: str, columns: ColumnNames) -> Example:
    """The example that a record of a known format holds.

    Raises:
        DataError: the record is malformed.
    """
    values = normalize(record, format, columns)
    metadata = values.pop("metadata")
    task = values.pop("task")
    identity = values.pop("id") or sha256_json(values)[:16]
    kind = kind_of_format(format)
    if kind == "conversations":
        return Conversation(identity, values["messages"], task, metadata)
    if kind == "labels":
        return LabelledText(identity, values["text"], values["label"], task, metadata)
    if kind == "tags":
        return TaggedText(identity, values["words"], values["labels"], task, metadata)
    return Preference(identity, values["prompt"], values["chosen"], values["rejected"], task, metadata)


def write_examples(file: Path, examples: Iterable[Example]) -> int:
    """Write examples to a JSONL file; equal examples in equal order give equal bytes.

    Returns:
        how many there were.
    """
    count = 0
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        for example in examples:
            stream.write(json.dumps(example.to_row(), ensure_ascii=False) + "\n")
            count += 1
    return count
