"""The n-grams of the texts that models are measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit.store.stage import ResolvedInput


def write_index(names: Sequence[str], inputs: Sequence[ResolvedInput], settings: Mapping[str, Any], out: Path) -> None:
    """Write the n-grams of all inputs to a folder, which `filter.Decontamination` opens; a task of its own.

    Args:
        names: what stands in `against`, for messages.
        inputs: what was found there.
        settings: `Decontamination.measuring`.
        out: folder, made where it is absent.

    Raises:
        DataError: an input that cannot be read, or one in which no text is long enough.
    """
    raise NotImplementedError
