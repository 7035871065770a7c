"""Near duplicates: MinHash signatures, buckets of bands of them, clusters, and the best document of each."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.deduplication.base import (
    Array,
    Entries,
    Part,
    count_shares,
    group_starts,
    load_share,
    sizes_of,
    starts,
)
from llmkit.data.deduplication.results import save_pairs, settle_drops
from llmkit.data.hashing import Hashes, mix
from llmkit.data.words import ngrams, words_of
from llmkit.errors import DataError, MissingDependencyError

NEAR_DUPLICATE = "near_duplicate"
_SEED = 1
_BAND = np.uint64(0x9E3779B97F4A7C15)


def signatures(texts: Sequence[str], permutations: int, ngram: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """MinHash signatures of the sets of word n-grams of texts.

    Args:
        texts: the texts.
        permutations: values of a signature.
        ngram: words in an n-gram.

    Returns:
        signatures of the texts that have a word, [n, permutations], and the numbers of these texts, [n].

    Raises:
        MissingDependencyError: rensa is not installed.
    """
    try:
        from rensa import RMinHash
    except ImportError:
        raise MissingDependencyError(
            "near duplicates need rensa, which is not installed.", hint="pip install 'llmkit[data]'"
        ) from None
    grams = ngrams(words_of(texts), ngram)
    some = np.flatnonzero(grams.counts)
    bounds = np.append(grams.begins[some], grams.begins[-1]).astype(np.uint64)
    if not len(some):
        return np.empty((0, permutations), np.uint32), some
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(grams.hashes, bounds, permutations, _SEED)
    values = array("I")
    for row in matrix.to_rows():
        # Four times as fast as numpy reads lists.
        values.fromlist(row)
    return np.frombuffer(values, np.uint32).reshape(-1, permutations), some


def band_keys(found: NDArray[np.uint32], bands: int, rows: int) -> Hashes:
    """A key for each band of each signature, other ones in each band.

    Args:
        found: signatures, [n, permutations].
        bands: how many bands.
        rows: values in each; what is left over is not looked at.

    Returns:
        [n, bands]
    """
    values = found[:, : bands * rows].reshape(len(found), bands, rows).astype(np.uint64)
    keys = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64) * _BAND, values.shape[:2])
    for row in range(rows):
        keys = mix(keys ^ values[:, :, row]) * _BAND
    return keys


def band_entries(texts: Sequence[str], settings: Mapping[str, Any]) -> Entries:
    """Entries of all bands of texts; a text without words has none."""
    found, row = signatures(texts, settings["permutations"], settings["ngram"])
    keys = band_keys(found, settings["bands"], settings["rows"])
    return Entries(keys.ravel(), np.repeat(row, settings["bands"]))


class MinHash:
    """Drops all documents of a cluster but the best, as a `near_duplicate` of that one.

    To put the clusters together takes about 50 bytes of memory for each document that shares a bucket with another.

    Args:
        keep: `longest`, `first`, `highest <filter>.<column>` or `lowest <filter>.<column>`.
    """

    name = "minhash"

    def __init__(self, keep: str) -> None:
        self.settings: Mapping[str, Any] = {"keep": keep}
        self._keep = keep

    def shares(self, parts: Sequence[Part]) -> int:
        """By the number of buckets that documents are in."""
        return count_shares(parts, self.name)

    def find(self, parts: Sequence[Part], share: int, shares: int, out: Path) -> None:
        """Write pairs of documents that share a bucket: every one with the first of its bucket."""
        entries = load_share(parts, self.name, share, shares)
        begins = group_starts(entries.key)
        first = np.repeat(entries.row[begins], sizes_of(begins, len(entries)))
        other = first != entries.row
        save_pairs(out, entries.row[other], first[other])

    def settle(self, parts: Sequence[Part], found: Sequence[Path], out: Path) -> None:
        """Clusters over the pairs of all shares, and all documents that are not the best of theirs, by part."""
        rows, labels = clusters(found)
        first = starts(parts)
        earlier = np.array([part.earlier for part in parts], bool)[np.searchsorted(first, rows, side="right") - 1]
        worth = self._worth(parts, first, rows)
        # Of each cluster the best first: of an earlier corpus, of the highest worth, of the lowest number.
        order = np.lexsort((rows, -worth, ~earlier, labels))
        rows, labels = rows[order], labels[order]
        begins = group_starts(labels)
        best = np.repeat(rows[begins], sizes_of(begins, len(rows)))
        going = np.flatnonzero(rows != best)
        going = going[np.argsort(rows[going])]
        settle_drops(parts, rows[going], best[going], NEAR_DUPLICATE, out)

    def _worth(self, parts: Sequence[Part], first: Array, rows: Array) -> NDArray[np.float64]:
        """What makes a document the better one, for each of some numbers of documents, which are sorted."""
        worth = np.zeros(len(rows))
        if self._keep == "first":
            return worth
        for index, part in enumerate(parts):
            begin, end = np.searchsorted(rows, first[index : index + 2])
            if begin < end:
                here = rows[begin:end] - first[index]
                worth[begin:end] = self._values(part, here)
        return worth

    def _values(self, part: Part, rows: Array) -> Array:
        if self._keep == "longest":
            characters: Array = np.load(part.keys / "characters.npy", mmap_mode="r")[rows]
            return characters
        if part.earlier:
            return np.zeros(len(rows))
        end, column = self._keep.split()
        values = _column(part, column)[rows] * (1 if end == "highest" else -1)
        return np.where(np.isnan(values), -np.inf, values)


def clusters(found: Sequence[Path]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Connected components of the pairs that shares have found, a share at a time.

    Returns:
        numbers of the documents that are in any pair, sorted, [n], and of each one its cluster, named after its least
        member's place in these, [n].
    """
    rows = np.empty(0, np.int64)
    for folder in found:
        rows = np.union1d(rows, np.load(folder / "pairs.npy"))
    labels = np.arange(len(rows))
    for folder in found:
        left, right = (np.searchsorted(rows, side) for side in np.load(folder / "pairs.npy"))
        _unite(labels, left, right)
    return rows, labels


def _unite(labels: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
    """Join the trees of all pairs, in place: each root under the least root it meets, until no pair is between two.

    `labels` is a forest in which every member points to its root, the least of its tree (Shiloach & Vishkin, 1982).
    """
    while True:
        one, other = labels[left], labels[right]
        apart = one != other
        if not apart.any():
            return
        left, right = left[apart], right[apart]
        low, high = np.minimum(one, other)[apart], np.maximum(one, other)[apart]
        np.minimum.at(labels, high, low)
        while True:
            above = labels[labels]
            if np.array_equal(above, labels):
                break
            labels[:] = above


def _column(part: Part, column: str) -> NDArray[np.float64]:
    """A measure of all rows of a part, NaN where it is missing.

    Raises:
        DataError: nothing measures it.
    """
    import pyarrow.parquet as pq

    found: list[Array] = []
    for file in part.measures.get(column.partition(".")[0], ()):
        if column not in pq.read_schema(file).names:
            break
        values = pq.read_table(file, columns=[column], use_threads=False).column(0)
        if not _is_number(values.type):
            raise DataError(f"`{column}` is no number, and cannot say which document is better.")
        found.append(values.cast("float64").to_numpy())
    if sum(map(len, found)) != part.rows:
        raise DataError(
            f"`{column}` says which document is better, and nothing measures it.",
            hint="Switch that filter on in `cleaning`, or set `deduplication.minhash.keep` to `longest`.",
        )
    return np.concatenate(found)


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))
