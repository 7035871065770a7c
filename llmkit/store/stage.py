"""What a stage gets and what it gives: its inputs, a directory to write in, and the outcome that becomes a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit.config.base import Facts
from llmkit.errors import ArtifactError
from llmkit.store.artifact import Artifact


@dataclass(frozen=True)
class ResolvedInput:
    """An input that has been found.

    Args:
        key: dotted key of the settings that names it.
        value: what is written there.
        path: the artifact's folder, or the file or folder named.
        digest: the artifact's content digest, or the sha256 of the file or folder.
        facts: kind and properties.
        artifact: the opened artifact, where it is one.
    """

    key: str
    value: str
    path: Path
    digest: str
    facts: Facts
    artifact: Artifact | None = None

    @property
    def label(self) -> str:
        """A short name for tables: the stage's name, or the path's last part."""
        return self.value if self.artifact is not None and "/" not in self.value else self.path.name

    @property
    def model_directory(self) -> Path:
        """The Hugging Face directory of a model input."""
        return self.path / "model" if self.artifact is not None else self.path

    @property
    def tokenizer_directory(self) -> Path:
        """The folder with `tokenizer.json` of a tokenizer, tokens or model input."""
        return tokenizer_directory(self.path)


def tokenizer_directory(path: Path) -> Path:
    """The folder with `tokenizer.json` in an artifact, a model directory or a tokenizer directory.

    Raises:
        ArtifactError: there is none.
    """
    for candidate in (path / "tokenizer", path / "model", path):
        if (candidate / "tokenizer.json").is_file():
            return candidate
    raise ArtifactError("there is no tokenizer (tokenizer.json) here.", where=str(path))


@dataclass(frozen=True)
class Context:
    """What a stage works with.

    Args:
        name: name of the stage.
        seed: seed of the stage.
        directory: where it writes. What an interrupted attempt with the same settings and inputs left is still there: a
            stage that can go on from it does, any other starts over by writing its files anew.
        inputs: its inputs by dotted key.
        where: place of the stage in the config, for messages ("a.yaml:12: stages.sft").
        is_main: whether this process writes; the other ranks of a training only compute.
        shard: number of this process, from 1, and count of those that a job scheduler has started to share the work;
            None for one alone.
    """

    name: str
    seed: int
    directory: Path
    inputs: Mapping[str, ResolvedInput] = field(default_factory=dict)
    where: str = ""
    is_main: bool = True
    shard: tuple[int, int] | None = None

    def place(self, key: str) -> str:
        """`where` of a dotted key of this stage, for an error's `where`."""
        return f"{self.where}.{key}" if key else self.where


@dataclass(frozen=True)
class Outcome:
    """What a stage has made in its directory.

    Args:
        content: glob patterns (as in `fnmatch`, `*` also matching `/`) of the files that are the result; everything
            else in the directory is a by-product, kept and checked, which no later stage depends on.
        facts: kind and properties, as known now.
        summary: numbers worth showing; cost as `seconds`, `tokens`, `flops` where they apply.
    """

    content: Sequence[str]
    facts: Facts
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a stage will cost, as far as it is known before it runs.

    Args:
        parameters: parameters trained.
        tokens: tokens read by training.
        flops: floating-point operations of training.
        memory_bytes: memory on one device at the moment of the highest use, by part ("weights", "gradients",
            "optimizer", "activations", ...).
        notes: anything a person should know, as sentences.
        precision: "fp32", "bf16" or "bf16-pure".
        micro_batch: sequences that go through the model of a device at once.
        extra_flops: floating-point operations on top of the model's, by what they are for ("recomputation",
            "optimizer").
        fits: whether the memory of a device is enough; None where that is not known.
    """

    parameters: int | None = None
    tokens: int | None = None
    flops: float | None = None
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    precision: str | None = None
    micro_batch: int | None = None
    extra_flops: Mapping[str, float] = field(default_factory=dict)
    fits: bool | None = None
