"""Settings of the stage `data`: where text comes from, how it is cleaned, and what is held out."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from llmkit.config.base import Facts, Finding, Input, StageConfig
from llmkit.data.cleaning.config import CleaningConfig
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
    splits: Splits = Splits()
    """What is held out from training. The split of a document depends on its split key alone, and not on the seed or on
    the documents around it, so that held-out text stays held out in every stage and run."""

    def environment(self) -> Mapping[str, str]:
        """Version and platform of the Python whose own text is read."""
        if any(isinstance(source, PythonDocsSource) for source in self.sources):
            return {"python": platform.python_version(), "platform": sys.platform}
        return {}

    def inputs(self) -> list[Input]:
        """Every file, folder or pattern of the sources."""
        return [
            Input(f"sources.{index}.{key}", pattern, ("file",))
            for index, source in enumerate(self.sources)
            for key, pattern in source.files_read()
        ]

    def facts(self, inputs: Mapping[str, Facts]) -> Facts:
        """Documents, with the splits that get any."""
        return Facts("documents", {"splits": self.splits.names()})

    def check(self, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """Names that clash, and datasets that may change."""
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
