"""Settings of the stage `data`: where text comes from, how it is cleaned, and what is held out."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from llmkit.config.base import Facts, Finding, Input, StageConfig
from llmkit.data.cleaning.config import CleaningConfig
from llmkit.data.decontamination.config import DecontaminationConfig
from llmkit.data.deduplication.config import DeduplicationConfig
from llmkit.data.execution.config import ExecutorConfig, WorkConfig
from llmkit.data.sources.config import AnySource, DatasetSource, PythonDocsSource
from llmkit.store.splits import Splits


class DataConfig(StageConfig):
    """Collects text from sources, cleans it, and writes documents, with a copy of and a reason for each one dropped."""

    kind: ClassVar[str] = "data"

    stage: Literal["data"] = "data"
    """Kind of the stage."""
    sources: list[AnySource] = Field(min_length=1)
    """Where the text comes from; earlier sources come first in the documents and win over later duplicates."""
    cleaning: CleaningConfig = CleaningConfig()
    """What is mended and what is dropped."""
    deduplication: DeduplicationConfig = DeduplicationConfig()
    """What is removed because it is there already."""
    decontamination: DecontaminationConfig | None = None
    """Removal of texts on which models are measured."""
    splits: Splits = Splits()
    """What is held out from training. The split of a document depends on its split key alone, and not on the seed or on
    the documents around it, so that held-out text stays held out in every stage and run."""
    executor: ExecutorConfig = ExecutorConfig()
    """Who does the work: processes of this machine, or a Ray cluster. The corpus is the same to the byte."""
    work: WorkConfig = WorkConfig()
    """Where results of tasks are kept, so that a killed run goes on and another threshold measures nothing again."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"executor", "work"})

    def environment(self) -> Mapping[str, str]:
        """Version and platform of the Python whose own text is read."""
        if any(isinstance(source, PythonDocsSource) for source in self.sources):
            return {"python": platform.python_version(), "platform": sys.platform}
        return {}

    def inputs(self) -> list[Input]:
        """Files of the sources; what filters read; earlier corpora, and texts on which models are measured."""
        files = [
            Input(f"sources.{index}.{key}", pattern, ("file",))
            for index, source in enumerate(self.sources)
            for key, pattern in source.files_read()
        ]
        others = [] if self.decontamination is None else self.decontamination.inputs("decontamination")
        return [*files, *self.cleaning.inputs("cleaning"), *self.deduplication.inputs("deduplication"), *others]

    def with_measured(self, measured: Mapping[str, Sequence[str]]) -> DataConfig:
        """The same with what is measured on in the place of the evaluations that `decontamination` names."""
        if self.decontamination is None:
            return self
        return self.model_copy(update={"decontamination": self.decontamination.with_measured(measured)})

    def facts(self, inputs: Mapping[str, Facts]) -> Facts:
        """Documents, with the splits that get any."""
        return Facts("documents", {"splits": self.splits.names()})

    def check(self, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """Models of filters that do not fit, names that clash, data that may change, measures that are not taken."""
        if self.decontamination is not None:
            yield from self.decontamination.check("decontamination", inputs)
        yield from self.cleaning.check("cleaning", inputs)
        needed = self.deduplication.missing_filter(name for name, value in self.cleaning if value is not None)
        if needed is not None:
            yield Finding(
                f"`{needed}` is not among the filters of `cleaning`, and its measure decides which document stays.",
                key="deduplication.minhash.keep",
                hint=f"Ask for it: `cleaning.{needed}: {{}}`.",
            )
        taken: dict[str, int] = {}
        for index, source in enumerate(self.sources):
            first = taken.setdefault(source.label, index)
            if first != index:
                yield Finding(
                    f"sources {first} and {index} are both called `{source.label}`, and their counts would mix.",
                    key=f"sources.{index}",
                    hint="Give each a `name`.",
                )
            if isinstance(source, DatasetSource) and not source.is_local and source.revision is None:
                yield Finding(
                    f"`{source.dataset}` is read at its newest revision, which may change between runs.",
                    key=f"sources.{index}.dataset",
                    hint="Set `revision` to a commit to have the same data always.",
                    severity="warning",
                )
