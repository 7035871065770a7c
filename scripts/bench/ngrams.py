"""The filter `perplexity` by word n-grams, against KenLM on the same model, on one thread.

    python scripts/bench/ngrams.py [--text DIRECTORY] [--megabytes 20] [--order 5] [--rounds 5] [--json]

By default the text is Python source of this installation; of every five files one is measured, and the model is made of
the others. The model is written in KenLM's own format (ARPA) and opened by its Python package (`pip install kenlm`), so
that both score the same n-grams; first it is asserted that they give every text the same bits. llmkit measures
documents as the stage `data` does, cutting them into words included. KenLM gets words by a regular expression from
lower-cased text, as CCNet prepares its input in Python, and scores each document in one call. Seconds are the process's
own time on the processor, the median of some rounds that take turns. Ratios are KenLM's seconds over llmkit's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import re
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.console import emit_table, say
from llmkit.data.hashing import mix
from llmkit.data.modelled.config import PerplexityConfig
from llmkit.data.modelled.ngrams import BASE, UNIT, NGrams, train
from llmkit.data.modelled.perplexity import Perplexity
from llmkit.data.words import Words, word_bounds, words_of
from llmkit.store.documents import Document

BATCH = 512
WORD = re.compile(r"[^\W_]+")
BITS = math.log2(10)


def read_texts(folder: Path | None, size: int) -> list[str]:
    """Texts of about `size` bytes."""
    roots = [folder] if folder else [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib")]
    texts: list[str] = []
    for root in roots:
        for file in sorted(root.rglob("*.*" if folder else "*.py")):
            if size > 0 and file.is_file():
                texts.append(file.read_text(encoding="utf-8", errors="ignore"))
                size -= len(texts[-1].encode())
    return texts


def strings_of(texts: Sequence[str], words: Words) -> dict[int, str]:
    """A string for each word, by its hash."""
    found: dict[int, str] = {}
    for text, begin in zip(texts, words.begins.tolist(), strict=False):
        begins, ends = word_bounds(text)
        hashes = words.hashes[begin : begin + len(begins)].tolist()
        for value, first, behind in zip(hashes, begins.tolist(), ends.tolist(), strict=True):
            found.setdefault(value, text[first:behind].lower())
    return found


def arpa_lines(model: NGrams, words: Words, strings: dict[int, str]) -> Iterator[str]:
    """The model in the format that KenLM reads."""
    offsets = np.arange(len(words.hashes)) - np.repeat(words.begins[:-1], words.counts)
    names = [strings[value] for value in words.hashes.tolist()]
    yield "\\data\\"
    for order, table in enumerate(model.tables, start=1):
        yield f"ngram {order}={len(table.keys) + 3 * (order == 1)}"
    rolling = words.hashes
    for order, table in enumerate(model.tables, start=1):
        yield f"\n\\{order}-grams:"
        if order == 1:
            yield from (f"{-model.unknown / UNIT / BITS:.9g}\t<unk>\t0", "-99\t<s>\t0", "-99\t</s>\t0")
        else:
            rolling = rolling[:-1] * BASE + words.hashes[order - 1 :]
        places = np.flatnonzero(offsets[order - 1 :] >= order - 1)
        keys, first = np.unique(mix(rolling[places]), return_index=True)
        found = table.find(keys)
        for place, row in zip(places[first[found >= 0]].tolist(), found[found >= 0].tolist(), strict=True):
            said = f"{-table.costs[row] / UNIT / BITS:.9g}\t{' '.join(names[place : place + order])}"
            yield said if order == model.order else f"{said}\t{-table.backoffs[row] / UNIT / BITS:.9g}"
    yield "\n\\end\\\n"


def open_kenlm(model: NGrams, texts: Sequence[str], words: Words, folder: Path) -> tuple[Any, dict[int, str]] | None:
    """KenLM with the same model, and the strings of words; None where it is not installed."""
    if importlib.util.find_spec("kenlm") is None:
        return None
    import kenlm

    strings = strings_of(texts, words)
    file = folder / "model.arpa"
    with file.open("w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in arpa_lines(model, words, strings))
    return kenlm.Model(str(file)), strings


def largest_difference(model: NGrams, peer: Any, strings: dict[int, str], texts: Sequence[str]) -> float:
    """Bits by which the two differ most on a text, as a share of its bits."""
    words = words_of(texts)
    names = [strings.get(value, f"unknown{value}") for value in words.hashes.tolist()]
    largest = 0.0
    for row, ours in enumerate(model.bits(words).tolist()):
        theirs = -BITS * peer.score(" ".join(names[words.begins[row] : words.begins[row + 1]]), bos=False, eos=False)
        largest = max(largest, abs(ours - theirs) / max(ours, 1.0))
    return largest


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    """Measure, print a table and, if asked, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=None)
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    texts = read_texts(options.text, options.megabytes * 10**6)
    measured = texts[::5]
    known = [text for place, text in enumerate(texts) if place % 5]
    megabytes = sum(len(text.encode()) for text in measured) / 1e6
    words = words_of(known)
    began = time.process_time()
    model = train(words, options.order, 2)
    training = time.process_time() - began
    say(f"{len(words.hashes):,} words to learn from: {training:.1f} s, {[len(table.keys) for table in model.tables]}")
    took: dict[str, list[float]] = {"llmkit": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model.save(folder)
        config = PerplexityConfig.model_validate({"ngram": {"train_on": ["x"], "order": options.order}})
        filter_ = Perplexity(config, folder)
        documents = [Document("", text, "s", "p") for text in measured]
        peer = open_kenlm(model, known, words, folder)
        competitors = {
            "llmkit": lambda: [filter_.measure(documents[at : at + BATCH]) for at in range(0, len(documents), BATCH)]
        }
        if peer is not None:
            score, strings = peer[0].score, peer[1]
            difference = largest_difference(model, peer[0], strings, measured)
            assert difference < 1e-4, difference
            say(f"on {len(measured):,} texts both give the same bits: {difference:.1e} of them at the most")
            competitors["kenlm"] = lambda: [
                score(" ".join(WORD.findall(text.lower())), bos=False, eos=False) for text in measured
            ]
        for work in competitors.values():
            work()
        took = {name: [] for name in competitors}
        for _ in range(options.rounds):
            for name, work in competitors.items():
                took[name].append(seconds(work))
    median = {name: statistics.median(values) for name, values in took.items()}
    ratio = {name: value / median["llmkit"] for name, value in median.items() if name != "llmkit"}
    emit_table(
        ["", "MB/s", "processor seconds", "its seconds / llmkit's"],
        [[name, megabytes / value, value, ratio.get(name, 1.0)] for name, value in median.items()],
    )
    if options.json:
        missing = {"missing": ["kenlm"]}
        versions = {} if peer is None else {"kenlm": importlib.metadata.version("kenlm")}
        result = {
            "bench": "ngrams",
            "cores": 1,
            "versions": versions,
            "llmkit": {"megabytes_per_second": megabytes / median["llmkit"], "training_seconds": training},
            "peers": {"kenlm": missing if peer is None else {"megabytes_per_second": megabytes / median["kenlm"]}},
            "ratio": ratio,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
