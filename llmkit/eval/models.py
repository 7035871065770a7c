"""Models under evaluation: found, described, opened one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from llmkit.config.base import Facts
from llmkit.errors import ModelError
from llmkit.model.facts import read_model_facts
from llmkit.model.load import load_model
from llmkit.model.transformer import Transformer
from llmkit.store.hub import PREFIX
from llmkit.store.stage import ResolvedInput
from llmkit.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Candidate:
    """A model that has not been opened: only its config and its tokenizer have.

    Args:
        label: its name in tables.
        source: where it is.
    """

    label: str
    source: ResolvedInput

    @cached_property
    def properties(self) -> Mapping[str, Any]:
        """What its config says: family, head, labels, context, parameters and so on."""
        return read_model_facts(self.source.model_directory)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its own tokenizer."""
        return Tokenizer.load(self.source.tokenizer_directory)

    @property
    def facts(self) -> Facts:
        """Its properties, and whether it has a chat template."""
        return Facts("model", {**self.properties, "chat_template": self.tokenizer.chat_template is not None})

    @property
    def context(self) -> int:
        """The longest sequence that it takes, in tokens."""
        return int(self.properties["context"])

    def open(self, machine: Machine) -> Subject:
        """Load its weights.

        Raises:
            ModelError: the weights cannot be read, or the tokenizer gives ids that the model has no rows for.
        """
        model = load_model(self.source.model_directory, dtype=machine.dtype, device=machine.device)
        if self.tokenizer.vocab_size > model.config.vocab_size:
            raise ModelError(
                f"the tokenizer has {self.tokenizer.vocab_size:,} tokens, and the model {model.config.vocab_size:,}.",
                where=str(self.source.path),
            )
        return Subject(self, model)


@dataclass(frozen=True)
class Subject:
    """An opened model with its tokenizer."""

    candidate: Candidate
    model: Transformer

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.candidate.tokenizer


@dataclass(frozen=True)
class Machine:
    """Where and in which number format models compute."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, device: str, precision: str) -> Machine:
        """From the settings `device` and `precision`."""
        found = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        bf16 = precision == "bf16" or (precision == "auto" and found == "cuda")
        return cls(torch.device(found), torch.bfloat16 if bf16 else torch.float32)

    @property
    def precision(self) -> str:
        """Name of the number format, for signatures."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"


def candidates(sources: Sequence[ResolvedInput]) -> list[Candidate]:
    """Models with names that differ: the short one, or what the config says where two short ones are equal."""
    short = [_short(source) for source in sources]
    counts = Counter(short)
    return [
        Candidate(name if counts[name] == 1 else source.value, source)
        for name, source in zip(short, sources, strict=True)
    ]


def _short(source: ResolvedInput) -> str:
    if source.value.startswith(PREFIX):
        return source.value.rpartition("/")[2]
    return source.label
