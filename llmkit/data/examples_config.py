"""Settings of the stage `examples`: labelled rows from Python's documentation, from files, or from a dataset."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmkit.config.base import Config, Facts, Finding, Input, StageConfig
from llmkit.data.examples_formats import ColumnNames, kind_of_format
from llmkit.store.splits import SPLITS, Split, Splits

ChatTaskName = Literal["describe", "brief", "kind", "module", "words", "parameters", "arity"]
FormatName = Literal[
    "auto", "messages", "sharegpt", "alpaca", "prompt-completion", "labels", "tags", "preferences", "dialogues"
]
Weight = Annotated[float, Field(gt=0, le=1000)]


class PythonSource(Config):
    """What every task derived from Python's documentation can say."""

    kind: Literal["python-docs"] = "python-docs"
    """Objects of the standard library of the Python that runs llmkit, and their docstrings."""
    split_by: Literal["object", "module"] = "object"
    """What splits do not share. With `module`, the stage `data` holds out the same objects where it splits
    `python-docs` by module with the same fractions: held-out answers are then not in the pretraining text either."""


class ChatSource(PythonSource):
    """Questions of one task and their answers, as conversations."""

    task: ChatTaskName
    """What is asked: `describe` (what does it do), `brief` (the same in a given number of words), `kind` (module,
    class, function or method), `module` (where is it defined), `words` (of a name, joined by hyphens), `parameters`
    (their names), `arity` (their number)."""
    wordings: int = Field(default=3, ge=1, le=4)
    """How many ways of asking are used, as far as the task has them."""


class MixtureSource(PythonSource):
    """Questions of several tasks, shuffled together, as conversations."""

    task: Literal["mixture"]
    """Several tasks."""
    tasks: dict[ChatTaskName, Weight] = Field(min_length=1)
    """Weight of each task: how many of its questions there are relative to the others'."""
    wordings: int = Field(default=3, ge=1, le=4)
    """How many ways of asking are used, as far as a task has them."""

    def weights(self) -> dict[str, float]:
        """Weight by task."""
        return {str(task): weight for task, weight in self.tasks.items()}


class PreferenceSource(PythonSource):
    """The true answers to the questions of one or several tasks, each against a spoiled one."""

    task: Literal["preferences"]
    """Pairs of answers."""
    tasks: dict[ChatTaskName, Weight] = Field(default={"describe": 1.0}, min_length=1)
    """Weight of each task: how many of its questions there are relative to the others'."""
    wordings: int = Field(default=3, ge=1, le=4)
    """How many ways of asking are used, as far as a task has them; the same as those of the chat tasks."""
    corruptions: list[Literal["other", "mistake", "shuffled", "truncated", "repeated"]] = Field(
        default=["other", "mistake", "shuffled", "truncated", "repeated"], min_length=1
    )
    """How answers are spoiled: another object's answer, a near mistake, words shuffled, cut short, or repeated."""
    pairs: int = Field(default=1, ge=1, le=5)
    """How many differently spoiled answers each question gets, as far as they can be made."""

    def weights(self) -> dict[str, float]:
        """Weight by task."""
        return {str(task): weight for task, weight in self.tasks.items()}


class ClassifySource(PythonSource):
    """Docstrings labelled with where they come from."""

    task: Literal["classify"]
    """Labelled texts."""
    labels: Literal["packages", "topics"] = "packages"
    """`packages`: ten packages with many docstrings (asyncio, tkinter, ...); `topics`: ten parts of the library
    (internet, mathematics, ...), each of several packages."""
    per_label: int = Field(default=250, ge=1)
    """Texts of each label at most, so that the most frequent label is not much more frequent than the others."""
    max_words: int = Field(default=60, ge=5)
    """Words of a text; the rest of the docstring is cut off."""
    mask_names: bool = True
    """Replace the name of the object's package in its text by "module": otherwise the answer stands in the question."""


class RowsSource(Config):
    """What sources of ready-made rows can say."""

    format: FormatName = "auto"
    """Shape of the rows; `auto` tells it by the keys of the first one."""
    columns: ColumnNames = ColumnNames()
    """Names of columns that are not called as usual."""
    malformed: Literal["error", "drop"] = "error"
    """What to do about a malformed row: stop and name it, or drop it, count it in `report.json` and write it to
    `quarantine.jsonl` with its place."""
    split_key: str | None = Field(default=None, min_length=1)
    """Column that splits do not share: rows with the same value stay together. By default the prompt, or the text."""


class FilesSource(RowsSource):
    """Rows of someone's own files: JSONL, JSON, CSV, TSV or Parquet, plain or as `.gz`, `.bz2`, `.xz`, `.zst`."""

    kind: Literal["files"] = "files"
    """Rows of files."""
    files: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    """Files, folders or patterns, local or as URLs; what they hold is divided by `splits`."""
    validation: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """The same for the validation split, where it comes apart; `splits.validation` then does nothing."""
    test: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """The same for the test split, where it comes apart; `splits.test` then does nothing."""
    header: bool = True
    """Whether the first line of CSV and TSV files names the columns; without it they are called "0", "1", ..."""

    def parts(self) -> dict[str, list[str]]:
        """Dotted keys below the source of the paths of each split, the held-out ones first."""
        named = {"test": ("test", self.test), "validation": ("validation", self.validation)}
        found = {split: [f"{key}.{n}" for n in range(len(paths))] for split, (key, paths) in named.items() if paths}
        return {**found, "train": [f"files.{index}" for index in range(len(self.files))]}

    def path(self, key: str) -> str:
        """The path written at a key of `parts`."""
        name, _, index = key.partition(".")
        return str(getattr(self, name)[int(index)])


class DatasetRowsSource(RowsSource):
    """Rows of a dataset of the `datasets` library."""

    kind: Literal["dataset"] = "dataset"
    """Rows of a dataset."""
    dataset: str = Field(min_length=1)
    """Name on the hub (`owner/name`), or a local folder, written with a leading `.` or `/`."""
    config: str | None = None
    """Configuration of the dataset, where it has several."""
    split: str = Field(default="train", min_length=1)
    """Split of the dataset to read; it is divided by `splits`."""
    validation: str | None = Field(default=None, min_length=1)
    """Split of the dataset for validation, where it has one; `splits.validation` then does nothing."""
    test: str | None = Field(default=None, min_length=1)
    """Split of the dataset for testing, where it has one; `splits.test` then does nothing."""
    streaming: bool = True
    """Read it as it comes, instead of downloading all of it into the library's cache first."""
    revision: str | None = None
    """Commit or tag of a dataset on the hub. Without one, the newest is read, and it may change."""

    @property
    def is_local(self) -> bool:
        """Whether a folder is meant and not a name on the hub."""
        return self.dataset.startswith((".", "/"))

    def parts(self) -> dict[str, str]:
        """Split of the dataset for each split, the held-out ones first."""
        named = {"test": self.test, "validation": self.validation, "train": self.split}
        return {split: name for split, name in named.items() if name is not None}


PythonTaskSource = Annotated[
    ChatSource | MixtureSource | PreferenceSource | ClassifySource, Field(discriminator="task")
]
AnyExamplesSource = Annotated[PythonTaskSource | FilesSource | DatasetRowsSource, Field(discriminator="kind")]


class ExamplesConfig(StageConfig):
    """Makes labelled examples: conversations, labelled texts or preferences, without duplicates and in splits."""

    kind: ClassVar[str] = "examples"

    stage: Literal["examples"] = "examples"
    """Kind of the stage."""
    source: AnyExamplesSource
    """Where the rows come from."""
    splits: Splits = Splits()
    """What is held out. The split of an example depends on its object or prompt alone, and neither on the seed nor on
    the other examples, so that held-out examples stay held out in every stage and run."""
    limit: int | None = Field(default=None, ge=1)
    """Examples to keep, at most. A source with validation or test parts of its own gives as many of each part."""

    def environment(self) -> Mapping[str, str]:
        """Version and platform of the Python whose own text is read."""
        if isinstance(self.source, PythonSource):
            return {"python": platform.python_version(), "platform": sys.platform}
        return {}

    def inputs(self) -> list[Input]:
        """Every file, folder or pattern of the source."""
        if isinstance(self.source, FilesSource):
            source = self.source
            keys = [key for keys in source.parts().values() for key in keys]
            return [Input(f"source.{key}", source.path(key), ("file",)) for key in keys]
        if isinstance(self.source, DatasetRowsSource) and self.source.is_local:
            return [Input("source.dataset", self.source.dataset, ("file",))]
        return []

    def split_names(self) -> list[Split]:
        """Names of the splits that get any examples."""
        own = set() if isinstance(self.source, PythonSource) else set(self.source.parts())
        return [split for split in SPLITS if split in own or split in self.splits.names()]

    def facts(self, inputs: Mapping[str, Facts]) -> Facts:
        """Examples, with what the source tells of their format and labels."""
        return Facts("examples", {"splits": self.split_names(), **source_facts(self.source)})

    def check(self, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """Settings that do nothing, and datasets that may change."""
        if self.seed is not None:
            yield Finding("the examples do not depend on a seed.", key="seed", hint="Remove it.", severity="warning")
        source = self.source
        if isinstance(source, DatasetRowsSource) and not source.is_local and source.revision is None:
            yield Finding(
                f"`{source.dataset}` is read at its newest revision, which may change between runs.",
                key="source.dataset",
                hint="Set `revision` to a commit to have the same data always.",
                severity="warning",
            )


def source_facts(source: Config) -> dict[str, object]:
    """Format and labels of a source's examples, as far as its settings tell them."""
    if isinstance(source, (ChatSource, MixtureSource)):
        return {"format": "conversations"}
    if isinstance(source, PreferenceSource):
        return {"format": "preferences"}
    if isinstance(source, ClassifySource):
        from llmkit.data.tasks.classify import LABELS

        return {"format": "labels", "labels": sorted(LABELS[source.labels])}
    if isinstance(source, RowsSource) and source.format != "auto":
        return {"format": kind_of_format(source.format)}
    return {}
