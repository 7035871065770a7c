"""Evaluation data in files and folders, and what decontamination says of texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.config.base import Facts
from llmkit.data.cleaning.base import Dropped
from llmkit.data.decontamination.config import DecontaminationConfig
from llmkit.data.decontamination.filter import Decontamination
from llmkit.data.decontamination.index import write_index
from llmkit.store.documents import Document
from llmkit.store.stage import ResolvedInput


def named(value: str | Path, kind: str = "file", path: Path | None = None) -> ResolvedInput:
    """An input of decontamination."""
    return ResolvedInput("decontamination.against.0", str(value), path or Path(value), "", Facts(kind))


def write_rows(file: Path, rows: Sequence[Any]) -> Path:
    """A JSONL file."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def against(folder: Path, *inputs: ResolvedInput, **settings: Any) -> Decontamination:
    """Decontamination with an index of some inputs, which is written to a folder."""
    names = [found.value for found in inputs]
    config = DecontaminationConfig.model_validate({"against": names, **settings})
    found = Decontamination(config, folder)
    write_index(names, inputs, found.measuring, folder)
    return found


def measure(found: Decontamination, texts: Sequence[str]) -> dict[str, list[Any]]:
    """The columns, which are those that it says it has."""
    measured = found.measure([Document("", text, "s", "p") for text in texts])
    assert list(measured) == list(found.columns)
    return {name: np.asarray(values).tolist() for name, values in measured.items()}


def verdicts(found: Decontamination, texts: Sequence[str]) -> list[Dropped | None]:
    """What becomes of texts, by measures in the types that they are kept in."""
    types = {"int32": np.int32, "float32": np.float32, "string": object}
    measured = measure(found, texts)
    return found.judge({name: np.array(measured[name], types[kind]) for name, kind in found.columns.items()})


def dropped(found: Decontamination, texts: Sequence[str]) -> list[bool]:
    """Which texts go."""
    return [verdict is not None for verdict in verdicts(found, texts)]
