"""Small corpora as the methods see them: parts with keys on disk, and what a method does to each text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.deduplication.base import Method, Part
from llmkit.data.deduplication.keys import write_keys
from llmkit.data.deduplication.results import settled
from llmkit.store.documents import ParquetFiles


@dataclass
class Corpus:
    """Parts of texts below a folder.

    Args:
        folder: where everything is written.
        settings: what keys are made of, as `DeduplicationConfig.key_settings()`.
        parts: the parts so far.
    """

    folder: Path
    settings: Mapping[str, Any]
    parts: list[Part] = field(default_factory=list)

    def add(
        self, texts: Sequence[str], *, kept: Sequence[bool] | None = None, earlier: bool = False,
        measures: Mapping[str, tuple[Path, ...]] | None = None,
    ) -> Corpus:  # fmt: skip
        """Append a part; the id of a document is its part's number and its row."""
        number = len(self.parts)
        here = self.folder / f"part-{number}"
        here.mkdir(parents=True)
        with ParquetFiles(here, "documents", ("id", "text")) as file:
            for row, text in enumerate(texts):
                file.write([f"{number}.{row}", text])
        documents = tuple(sorted(here.glob("*.parquet")))
        assert write_keys(documents, self.settings, here / "keys") == len(texts)
        mask = None
        if kept is not None:
            mask = here / "kept.npy"
            np.save(mask, np.array(kept, bool))
        self.parts.append(Part(here / "keys", len(texts), documents, mask, measures or {}, earlier))
        return self

    def settle(self, method: Method, shares: int = 1) -> Path:
        """The folder that a method settles in, its keys compared in so many shares."""
        out = self.folder / f"{method.name}-{len(list(self.folder.glob('*')))}"
        folders = [out / f"share-{share}" for share in range(shares)]
        for share, found in enumerate(folders):
            method.find(self.parts, share, shares, found)
        method.settle(self.parts, folders, out)
        return out

    def drops(self, method: Method, shares: int = 1) -> dict[str, str]:
        """Which documents a method drops, and the detail of each."""
        out = self.settle(method, shares)
        found = [(index, settled(out, index).dropped) for index in range(len(self.parts))]
        return {f"{index}.{row}": dropped.detail for index, rows in found for row, dropped in rows.items()}

    def cuts(self, method: Method, shares: int = 1) -> dict[str, list[list[int]]]:
        """What a method cuts out: first bytes and ends by document."""
        out = self.settle(method, shares)
        found = [(index, settled(out, index).cuts) for index in range(len(self.parts))]
        return {f"{index}.{row}": cuts.tolist() for index, rows in found for row, cuts in rows.items()}


def stretches(marks: Sequence[bool] | NDArray[np.bool_]) -> list[list[int]]:
    """Where runs of True begin and end."""
    found: list[list[int]] = []
    for place, mark in enumerate(marks):
        if mark and found and found[-1][1] == place:
            found[-1][1] = place + 1
        elif mark:
            found.append([place, place + 1])
    return found
