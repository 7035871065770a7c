"""What the tests of the room share beside fixtures."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path

from llmkit.config.base import Facts
from llmkit.eval.models import Candidate, Machine, Subject
from llmkit.store.files import sha256_tree
from llmkit.store.stage import ResolvedInput

TEXTS = [part for part in inspect.getsource(textwrap).split("\n\n") if part.strip()]


def resolved(path: Path, facts: Facts | None = None, key: str = "") -> ResolvedInput:
    """An input outside the store."""
    return ResolvedInput(key, str(path), path, sha256_tree(path), facts or Facts("file"))


def subject(source: ResolvedInput, label: str = "model") -> Subject:
    """An opened model, in float32 on the CPU."""
    return Candidate(label, source).open(Machine.choose("cpu", "fp32"))


def quiet(total: int) -> Callable[[int], None]:
    """No progress display."""
    return lambda amount: None
