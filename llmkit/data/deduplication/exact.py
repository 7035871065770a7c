"""Documents whose whole text has come before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.data.deduplication.base import Part, count_shares, group_starts, load_share, sizes_of
from llmkit.data.deduplication.results import load_pairs, save_pairs, settle_drops

DUPLICATE = "duplicate"


def content_key(text: str) -> bytes:
    """16 bytes that are equal for texts which differ in white space only (128-bit BLAKE2b; chance collisions are
    expected after some 10^19 documents)."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


class Exact:
    """Drops a document whose text, white space aside, is that of one before it, as a `duplicate` of that one.

    The second half of a document's content key stands in place of a beginning, so that keys are compared whole.
    """

    name = "exact_duplicates"
    settings: Mapping[str, Any] = {}

    def shares(self, parts: Sequence[Part]) -> int:
        """By the number of documents."""
        return count_shares(parts, "exact")

    def find(self, parts: Sequence[Part], share: int, shares: int, out: Path) -> None:
        """Write the numbers of duplicates, sorted, beside those of the first documents of their texts."""
        entries = load_share(parts, "exact", share, shares)
        rest = entries.begin if entries.begin is not None else np.empty(0, np.int64)
        order = np.lexsort((entries.row, rest, entries.key))
        key, rest, row = entries.key[order], rest[order], entries.row[order]
        begins = group_starts(key, rest)
        first = np.repeat(row[begins], sizes_of(begins, len(row)))
        save_pairs(out, row[row != first], first[row != first])

    def settle(self, parts: Sequence[Part], found: Sequence[Path], out: Path) -> None:
        """The duplicates of all shares by part."""
        rows, instead = load_pairs(found)
        settle_drops(parts, rows, instead, DUPLICATE, out)
