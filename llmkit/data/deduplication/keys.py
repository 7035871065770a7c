"""The keys of a part: what every method needs to know of its texts, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_keys(documents: Sequence[Path], settings: Mapping[str, Any], out: Path) -> None:
    """Write the keys of one part to a folder.

    Args:
        documents: its Parquet files, in order, with columns `id` and `text`.
        settings: `DeduplicationConfig.key_settings()`, on which nothing else of the configuration depends.
        out: folder, made where it is absent: `id.npy`, `characters.npy`, and for each method the .npy files of its
            entries, sorted by key.
    """
    raise NotImplementedError
