"""Signatures, bands, clusters and the choice of what stays, against closed forms and slow definitions."""

from __future__ import annotations

import itertools
import math
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deduplication_support import Corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.deduplication.config import MinHashConfig, best_shape
from llmkit.data.deduplication.minhash import MinHash, band_entries, band_keys, clusters, signatures
from llmkit.data.deduplication.results import save_pairs
from llmkit.errors import DataError

ONE_WORD = {"minhash": {"permutations": 64, "bands": 16, "rows": 4, "ngram": 1}}

# `datasketch.lsh._optimal_param(threshold, num_perm, 0.5, 0.5)` of datasketch 2.0.0: bands and rows.
DATASKETCH_SHAPES = {
    64: {0.5: (14, 4), 0.6: (10, 6), 0.7: (8, 8), 0.75: (7, 9), 0.8: (5, 11), 0.9: (3, 21), 0.95: (2, 32)},
    128: {0.5: (25, 5), 0.6: (18, 7), 0.7: (14, 9), 0.75: (11, 11), 0.8: (9, 13), 0.9: (5, 25), 0.95: (3, 42)},
    256: {0.5: (42, 6), 0.6: (32, 8), 0.7: (25, 10), 0.75: (21, 12), 0.8: (17, 15), 0.9: (9, 28), 0.95: (5, 51)},
}


def words(count: int, draw: random.Random) -> list[str]:
    return [f"w{draw.getrandbits(60):x}" for _ in range(count)]


def pair(common: int, own: int, draw: random.Random) -> tuple[str, str]:
    """Two texts whose sets of words have the Jaccard similarity common / (common + 2 own)."""
    shared = words(common, draw)
    first, second = shared + words(own, draw), shared + words(own, draw)
    draw.shuffle(first)
    draw.shuffle(second)
    return " ".join(first), " ".join(second)


@pytest.mark.parametrize(("common", "own"), [(20, 90), (100, 50), (90, 5), (1, 1), (300, 0)])
def test_equal_values_are_an_unbiased_estimate_of_the_similarity(common: int, own: int) -> None:
    draw, pairs, permutations = random.Random(common), 60, 256
    texts = [text for _ in range(pairs) for text in pair(common, own, draw)]
    found, rows = signatures(texts, permutations, 1)
    assert found.shape == (2 * pairs, permutations)
    assert rows.tolist() == list(range(2 * pairs))
    similarity = common / (common + 2 * own)
    estimates = (found[0::2] == found[1::2]).mean(axis=1)
    # Of a binomial distribution of all values the mean, within 4.5 deviations, and no more than its variance among
    # pairs: values drawn from a small set nearly without putting back have less.
    variance = similarity * (1 - similarity) / permutations
    assert abs(estimates.mean() - similarity) <= 4.5 * math.sqrt(variance / pairs)
    if variance:
        assert estimates.var() / variance <= 1 + 4.5 * math.sqrt(2 / pairs)


def test_a_signature_is_that_of_the_set_of_ngrams() -> None:
    text = "The quick brown fox jumps over the lazy dog."
    same = ["the QUICK brown fox - jumps, over the lazy dog", f"{text} {text}"[: len(text) * 2]]
    found, rows = signatures([text, "", same[0], "...", "one two three"], 128, 5)
    assert rows.tolist() == [0, 2, 4]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    # Words in another order have no n-gram in common; as single words they are the same set.
    turned = " ".join(reversed(text.split()))
    assert (signatures([text, turned], 128, 5)[0][0] == signatures([turned], 128, 5)[0][0]).mean() < 0.1
    assert np.array_equal(*signatures([text, f"{turned} {text}"], 128, 1)[0])
    # Alone or among others, and in any number at once: the same.
    assert np.array_equal(signatures([text], 128, 5)[0][0], found[0])


def test_of_two_documents_of_known_similarity_the_theoretical_share_falls_into_a_common_bucket() -> None:
    settings = MinHashConfig(threshold=0.75, permutations=128, ngram=1)
    bands, rows = settings.shape
    draw, pairs = random.Random(1), 400
    texts = [text for _ in range(pairs) for text in pair(60, 10, draw)]
    entries = band_entries(texts, {"permutations": 128, "bands": bands, "rows": rows, "ngram": 1})
    keys = entries.key.reshape(-1, bands)
    hits = int((keys[0::2] == keys[1::2]).any(axis=1).sum())
    expected = 1 - (1 - 0.75**rows) ** bands
    assert settings.probability(0.75) == pytest.approx(expected, rel=1e-12)
    assert abs(hits / pairs - expected) <= 4.5 * math.sqrt(expected * (1 - expected) / pairs)


def test_keys_are_equal_where_the_values_of_a_band_are() -> None:
    draw = np.random.default_rng(0)
    found = draw.integers(0, 3, (200, 10)).astype(np.uint32)
    keys = band_keys(found, 4, 2)
    assert keys.shape == (200, 4)
    parts = found[:, :8].reshape(200, 4, 2)
    for one, other in itertools.combinations(range(60), 2):
        assert (keys[one] == keys[other]).tolist() == (parts[one] == parts[other]).all(axis=1).tolist()
    # Equal values in different bands, and in another order, are different keys.
    assert len(set(band_keys(np.full((1, 8), 7, np.uint32), 4, 2)[0].tolist())) == 4
    assert band_keys(np.array([[1, 2]], np.uint32), 1, 2) != band_keys(np.array([[2, 1]], np.uint32), 1, 2)
    # Values behind the last band are not looked at.
    other_rest = found.copy()
    other_rest[:, 8:] += 1
    assert np.array_equal(band_keys(other_rest, 4, 2), keys)


@pytest.mark.parametrize("permutations", DATASKETCH_SHAPES)
def test_bands_and_rows_are_those_of_datasketch(permutations: int) -> None:
    for threshold, shape in DATASKETCH_SHAPES[permutations].items():
        assert best_shape(threshold, permutations) == shape


def reached(edges: list[tuple[int, int]]) -> dict[int, int]:
    """Of each number in an edge the least one that can be reached from it, one step at a time."""
    least = {node: node for edge in edges for node in edge}
    changed = True
    while changed:
        changed = False
        for one, other in edges:
            low = min(least[one], least[other])
            changed |= least[one] != low or least[other] != low
            least[one] = least[other] = low
    return least


NODES = st.integers(0, 40)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.lists(st.tuples(NODES, NODES), max_size=25), min_size=1, max_size=3))
def test_clusters_are_connected_components(shares: list[list[tuple[int, int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        folders = []
        for number, edges in enumerate(shares):
            pairs = np.array(edges, np.int64).reshape(-1, 2)
            folders.append(Path(folder) / str(number))
            save_pairs(folders[-1], pairs[:, 0], pairs[:, 1])
        rows, labels = clusters(folders)
    expected = reached([edge for edges in shares for edge in edges])
    assert rows.tolist() == sorted(expected)
    assert rows[labels].tolist() == [expected[row] for row in rows.tolist()]


def test_a_long_chain_in_the_worst_order_is_one_cluster(tmp_path: Path) -> None:
    count = 20_000
    order = np.random.default_rng(0).permutation(count)
    save_pairs(tmp_path / "chain", order[1:], order[:-1])
    rows, labels = clusters([tmp_path / "chain"])
    assert (len(rows), labels.max()) == (count, 0)


def family(draw: random.Random) -> list[str]:
    """Texts of the same words, of different lengths: one cluster whatever the buckets."""
    base = words(30, draw)
    return [" ".join(base + base[:extra]) for extra in (3, 9, 9, 0)]


def test_the_longest_or_the_first_stays(tmp_path: Path) -> None:
    draw = random.Random(2)
    texts, others = family(draw), [" ".join(words(30, draw)) for _ in range(3)]
    corpus = Corpus(tmp_path, ONE_WORD).add([texts[0], others[0], texts[1]]).add([others[1], *texts[2:], others[2], ""])
    assert corpus.drops(MinHash("longest")) == {"0.0": "of 0.2", "1.1": "of 0.2", "1.2": "of 0.2"}
    assert corpus.drops(MinHash("first")) == {"0.2": "of 0.0", "1.1": "of 0.0", "1.2": "of 0.0"}


def measured(folder: Path, name: str, values: list[float | None]) -> dict[str, tuple[Path, ...]]:
    file = folder / f"{name}.parquet"
    pq.write_table(pa.table({f"{name}.score": pa.array(values, pa.float32())}), file)
    return {name: (file,)}


def test_the_highest_or_the_lowest_of_a_measure_stays(tmp_path: Path) -> None:
    texts = family(random.Random(3))
    corpus = Corpus(tmp_path, ONE_WORD)
    corpus.add(texts[:2], measures=measured(tmp_path, "quality", [0.5, None]))
    (tmp_path / "two").mkdir()
    corpus.add(texts[2:], measures=measured(tmp_path / "two", "quality", [0.25, 0.5]))
    # Of equals the first; one that is missing is the worst either way.
    assert corpus.drops(MinHash("highest quality.score")) == {"0.1": "of 0.0", "1.0": "of 0.0", "1.1": "of 0.0"}
    assert corpus.drops(MinHash("lowest quality.score")) == {"0.0": "of 1.0", "0.1": "of 1.0", "1.1": "of 1.0"}
    with pytest.raises(DataError, match="nothing measures it"):
        corpus.drops(MinHash("highest quality.other"))


def test_a_measure_that_is_no_number_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "language.parquet"
    pq.write_table(pa.table({"language.name": ["en", "de"]}), file)
    texts = family(random.Random(4))[:2]
    corpus = Corpus(tmp_path, ONE_WORD).add(texts, measures={"language": (file,)})
    with pytest.raises(DataError, match="no number"):
        corpus.drops(MinHash("highest language.name"))


def test_an_earlier_corpus_wins_over_all_and_loses_nothing(tmp_path: Path) -> None:
    texts = family(random.Random(5))
    corpus = Corpus(tmp_path, ONE_WORD).add([texts[3], texts[0]], earlier=True).add([texts[1]]).add([texts[2]])
    # The shortest of all stays before longer ones of the new sources: it is there already.
    for keep in ("first", "longest"):
        best = "0.0" if keep == "first" else "0.1"
        assert corpus.drops(MinHash(keep)) == {"1.0": f"of {best}", "2.0": f"of {best}"}


def test_what_was_dropped_before_takes_no_part(tmp_path: Path) -> None:
    texts = family(random.Random(6))
    corpus = Corpus(tmp_path, ONE_WORD).add(texts, kept=[True, False, True, False])
    assert corpus.drops(MinHash("longest")) == {"0.0": "of 0.2"}


def test_any_number_of_shares_finds_the_same(tmp_path: Path) -> None:
    draw = random.Random(7)
    chains: list[str] = []
    for _ in range(12):
        base = words(24, draw)
        # Each text shares most words with the next: clusters are linked over several buckets.
        chains += [" ".join(base[step:] + words(step, draw)) for step in range(6)]
    draw.shuffle(chains)
    settings: dict[str, Any] = {"minhash": {"permutations": 32, "bands": 8, "rows": 4, "ngram": 1}}
    corpus = Corpus(tmp_path, settings).add(chains[:40]).add(chains[40:])
    whole = corpus.drops(MinHash("longest"))
    assert len(whole) > 20
    for shares in (2, 7, 64):
        assert corpus.drops(MinHash("longest"), shares) == whole
