"""Near duplicates at known similarities: what llmkit and datasketch find with the same parameters, beside theory.

    python scripts/verify_deduplication.py [--pairs 4000] [--thresholds 0.6 0.7 0.75 0.8 0.9] [--svg FILE] [--json]

Each planted pair is a text and a copy of it in which words far from one another are replaced, so that the sets of
word 5-grams of the two have exactly the Jaccard similarity 0.50, 0.55, ... or 0.95; no 5-gram is in two pairs. That is
counted on the finished texts, apart from the code of either side. A pair is right where its similarity is at least the
threshold. Both sides look at all texts together, with the same number of permutations, bands and rows, and find pairs
that share a bucket: llmkit by the method `minhash` from Parquet files on, datasketch by `MinHashLSH` from sets of
5-grams on.

Printed are recall and precision at each threshold, the found share at each similarity beside 1 - (1 - s^rows)^bands,
and processor time. Signatures are as good as random on both sides, so that figures differ by chance. Exit code 1 where
llmkit's recall or precision is below datasketch's by more than three standard errors of the difference, a share is
further from theory than three standard errors and 0.03, or a pair is found that was not planted. The 0.03 are there
because the values of rensa's signatures are drawn from a small set nearly without putting back: they tell a similarity
more exactly than independent ones, and the curve is a little steeper. `--svg` draws the shares of the default
threshold.
A peer that is not installed is named as missing.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmkit.console import emit_table, say
from llmkit.data.deduplication.base import Part
from llmkit.data.deduplication.config import DeduplicationConfig, MinHashConfig
from llmkit.data.deduplication.keys import write_keys
from llmkit.data.deduplication.methods import methods
from llmkit.data.deduplication.results import load_pairs
from llmkit.report.svg import Curve, line_chart
from llmkit.store.documents import ParquetFiles

NGRAM = 5
PERMUTATIONS = 128
EDITS = {0.5: 10, 0.55: 9, 0.6: 8, 0.65: 7, 0.7: 6, 0.75: 5, 0.8: 4, 0.85: 3, 0.9: 2, 0.95: 1}
"""Replaced words by similarity: with these, the number of 5-grams is a whole one."""
STEEPER = 0.03
"""How far shares may be from theory by more than chance."""
DEFAULT = MinHashConfig().threshold
Pairs = set[tuple[int, int]]


@dataclass(frozen=True)
class Labelled:
    """Texts, two of each pair behind one another, and the similarity of each pair."""

    texts: list[str]
    similarity: list[float]


@dataclass
class Found:
    """What one side has found, by threshold, and the processor seconds of its signatures."""

    pairs: dict[float, Pairs]
    seconds: float


def labelled(count: int, seed: int) -> Labelled:
    """`count` pairs of each similarity, shuffled.

    Raises:
        AssertionError: a similarity is not the one wanted, or a 5-gram is in two pairs.
    """
    draw = random.Random(seed)
    syllables = [first + vowel for first in "bdfgklmnprstvz" for vowel in ("a", "e", "i", "o", "u", "ar", "en")]
    vocabulary = sorted({"".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(60_000)})
    wanted = [similarity for similarity in EDITS for _ in range(count)]
    draw.shuffle(wanted)
    texts: list[str] = []
    owner: dict[str, int] = {}
    for number, similarity in enumerate(wanted):
        edits = EDITS[similarity]
        # With n 5-grams, of which each edit takes five away and brings five: s = (n - 5 edits) / (n + 5 edits).
        grams = round(NGRAM * edits * (1 + similarity) / (1 - similarity))
        words = draw.choices(vocabulary, k=grams + NGRAM - 1)
        texts += [written(words, draw), written(replaced(words, edits, vocabulary, draw), draw)]
        one, other = ngrams(texts[-2]), ngrams(texts[-1])
        assert math.isclose(len(one & other) / len(one | other), similarity), similarity
        assert all(owner.setdefault(gram, number) == number for gram in one | other)
    return Labelled(texts, wanted)


def replaced(words: Sequence[str], edits: int, vocabulary: Sequence[str], draw: random.Random) -> list[str]:
    """The words with some replaced, each in five 5-grams of its own."""
    free = len(words) - 2 * (NGRAM - 1) - (edits - 1) * (NGRAM - 1)
    places = sorted(draw.sample(range(free), edits))
    copy = list(words)
    for index, place in enumerate(places):
        copy[NGRAM - 1 + place + index * (NGRAM - 1)] = draw.choice(vocabulary) + "x"
    return copy


def written(words: Sequence[str], draw: random.Random) -> str:
    """Words as a text: sentences and lines, which count for nothing."""
    text = words[0].capitalize()
    for word in words[1:]:
        end = draw.random()
        text += f". {word.capitalize()}" if end < 0.08 else f",\n{word}" if end < 0.12 else f" {word}"
    return text + "."


def ngrams(text: str) -> set[str]:
    """The set of word 5-grams, by a regular expression."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[place : place + NGRAM]) for place in range(len(words) - NGRAM + 1)}


def ours(data: Labelled, shapes: Mapping[float, tuple[int, int]], folder: Path) -> Found:
    """Pairs by llmkit."""
    with ParquetFiles(folder, "documents", ("id", "text")) as file:
        for number, text in enumerate(data.texts):
            file.write([str(number), text])
    documents = sorted(folder.glob("*.parquet"))
    found, seconds = {}, []
    for threshold, (bands, rows) in shapes.items():
        minhash = MinHashConfig(permutations=PERMUTATIONS, bands=bands, rows=rows, ngram=NGRAM)
        config = DeduplicationConfig(exact=False, minhash=minhash)
        keys = folder / f"keys-{threshold}"
        began = time.process_time()
        count = write_keys(documents, config.key_settings(), keys)
        seconds.append(time.process_time() - began)
        (method,) = methods(config)
        method.find([Part(keys, count, tuple(documents))], 0, 1, keys / "found")
        rows_of, firsts = load_pairs([keys / "found"])
        found[threshold] = {(one, other) for one, other in zip(firsts.tolist(), rows_of.tolist(), strict=True)}
    return Found(found, min(seconds))


def theirs(data: Labelled, shapes: Mapping[float, tuple[int, int]]) -> Found:
    """Pairs by datasketch."""
    from datasketch import MinHash, MinHashLSH

    began = time.process_time()
    signatures = []
    for text in data.texts:
        signature = MinHash(num_perm=PERMUTATIONS)
        signature.update_batch([gram.encode() for gram in ngrams(text)])
        signatures.append(signature)
    seconds = time.process_time() - began
    found = {}
    for threshold, shape in shapes.items():
        index = MinHashLSH(num_perm=PERMUTATIONS, params=shape)
        pairs = set()
        for number, signature in enumerate(signatures):
            pairs |= {(other, number) for other in index.query(signature)}
            index.insert(number, signature)
        found[threshold] = pairs
    return Found(found, seconds)


@dataclass(frozen=True)
class Score:
    """Recall and precision at a threshold, with their standard errors, and the found share by similarity."""

    recall: float
    precision: float
    recall_error: float
    precision_error: float
    shares: Mapping[float, float]
    unplanted: int


def score(data: Labelled, pairs: Pairs, threshold: float) -> Score:
    """Compare found pairs with planted ones."""
    planted = {(2 * number, 2 * number + 1): similarity for number, similarity in enumerate(data.similarity)}
    there = Counter(data.similarity)
    hits = Counter(planted[pair] for pair in pairs if pair in planted)
    right = sum(count for similarity, count in hits.items() if similarity >= threshold)
    wanted = sum(count for similarity, count in there.items() if similarity >= threshold)
    recall, precision = right / wanted, right / max(1, len(pairs))
    shares = {similarity: hits[similarity] / count for similarity, count in sorted(there.items())}
    return Score(
        recall, precision, _error(recall, wanted), _error(precision, len(pairs)), shares, len(pairs) - hits.total()
    )


def _error(share: float, count: int) -> float:
    """Standard error of a share of a count."""
    return math.sqrt(max(share * (1 - share), 1e-9) / max(1, count))


def faults(name: str, mine: Score, other: Score | None, theory: Mapping[float, float], count: int) -> list[str]:
    """What is worse than chance explains."""
    found = [] if not mine.unplanted else [f"{name}: {mine.unplanted} pairs that were not planted"]
    for similarity, share in mine.shares.items():
        expected = theory[similarity]
        if abs(share - expected) > 3 * _error(expected, count) + STEEPER:
            found.append(f"{name}: at similarity {similarity} {share:.4f} are found, {expected:.4f} by theory")
    if other is not None:
        for what in ("recall", "precision"):
            error = math.hypot(getattr(mine, f"{what}_error"), getattr(other, f"{what}_error"))
            if getattr(mine, what) < getattr(other, what) - 3 * error:
                found.append(f"{name}: {what} {getattr(mine, what):.4f}, datasketch {getattr(other, what):.4f}")
    return found


def draw_curve(file: Path, shape: tuple[int, int], measured: Mapping[str, Score]) -> None:
    """Found share by similarity, and what theory says."""
    bands, rows = shape
    steps = [0.4 + 0.6 * step / 200 for step in range(201)]
    theory = Curve(f"theory: 1 - (1 - s^{rows})^{bands}", [(s, _theory(s, shape)) for s in steps], 0)
    points = [
        Curve(name, list(found.shares.items()), color, rings=True)
        for color, (name, found) in enumerate(measured.items(), 1)
    ]
    file.write_text(
        line_chart(
            [theory, *points], title=f"Near duplicates found, {bands} bands of {rows} rows",
            x_title="Jaccard similarity of word 5-grams", y_title="share of pairs found", names_left=True,
        ),
        encoding="utf-8",
    )  # fmt: skip


def _theory(similarity: float, shape: tuple[int, int]) -> float:
    return 1.0 - (1.0 - similarity ** shape[1]) ** shape[0]


def main() -> int:
    """Plant, find, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=4000, help="planted at each similarity")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.6, 0.7, DEFAULT, 0.8, 0.9])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--svg", type=Path, help="file for the curve of the default threshold")
    parser.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    options = parser.parse_args()
    data = labelled(options.pairs, options.seed)
    shapes = {
        threshold: MinHashConfig(threshold=threshold, permutations=PERMUTATIONS).shape
        for threshold in options.thresholds
    }
    with tempfile.TemporaryDirectory() as folder:
        found = {"llmkit": ours(data, shapes, Path(folder))}
    try:
        found[f"datasketch {version('datasketch')}"] = theirs(data, shapes)
    except ImportError:
        say("datasketch is not installed, and was not asked (pip install datasketch)")
    scores = {
        name: {threshold: score(data, side.pairs[threshold], threshold) for threshold in shapes}
        for name, side in found.items()
    }
    wrong = report(data, shapes, scores, options.pairs)
    for name, side in found.items():
        print(
            f"{name}: signatures of {len(data.texts):,} texts, {len(data.texts) / side.seconds:,.0f} a processor second"
        )
    if options.svg is not None and DEFAULT in shapes:
        draw_curve(options.svg, shapes[DEFAULT], {name: found[DEFAULT] for name, found in scores.items()})
    if options.json:
        print(json.dumps(as_json(shapes, scores)))
    beside = " and ".join(["theory", *list(found)[1:]])
    print("\n".join(wrong) if wrong else f"no worse than {beside} but by chance, at any threshold and similarity")
    return 1 if wrong else 0


def report(
    data: Labelled, shapes: Mapping[float, tuple[int, int]], scores: Mapping[str, Mapping[float, Score]], count: int
) -> list[str]:
    """Print the tables; what is worse than chance explains."""
    names = list(scores)
    rows = [
        [threshold, *shape, *(value for name in names for value in _figures(scores[name][threshold]))]
        for threshold, shape in shapes.items()
    ]
    columns = [f"{what}, {name}" for name in names for what in ("recall", "precision")]
    emit_table(
        ["threshold", "bands", "rows", *columns], rows, title=f"{len(data.similarity):,} pairs, {count} a similarity"
    )
    wrong = []
    for threshold, shape in shapes.items():
        theory = {similarity: _theory(similarity, shape) for similarity in EDITS}
        mine, *others = (scores[name][threshold] for name in names)
        wrong += faults(f"threshold {threshold}", mine, others[0] if others else None, theory, count)
        if threshold == DEFAULT:
            shares = [
                [similarity, theory[similarity], *(scores[name][threshold].shares[similarity] for name in names)]
                for similarity in EDITS
            ]
            emit_table(["similarity", "theory", *names], shares, title=f"share found at the threshold {threshold}")
    return wrong


def _figures(found: Score) -> tuple[float, float]:
    return round(found.recall, 4), round(found.precision, 4)


def as_json(shapes: Mapping[float, tuple[int, int]], scores: Mapping[str, Mapping[float, Score]]) -> dict[str, Any]:
    """All figures, for machines."""
    return {
        name: {
            str(threshold): {"shape": shapes[threshold], "recall": each.recall, "precision": each.precision,
                             "shares": {str(similarity): share for similarity, share in each.shares.items()}}
            for threshold, each in found.items()
        }
        for name, found in scores.items()
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
