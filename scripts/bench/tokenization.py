"""Tokenization: the stage `tokens`, from Parquet files to shards, against `tokenizers` on texts in memory.

    python scripts/bench/tokenization.py [--corpus DIRECTORY --tokenizer DIRECTORY] [--rounds 5] [--json]

By default the text is Python source of this installation, the standard library first, and the tokenizer is a
byte-level BPE of 16,384 tokens learned from a part of it. llmkit starts two processes, reads and decompresses the
documents, encodes them, and writes and joins shards; all of that counts. `tokenizers` has the texts in memory, and
encodes them by two threads of one process in batches, with nothing done with the ids: by `encode_batch`, and by
`encode_batch_fast`, which leaves out the places of tokens in the text. The three take turns. Ratios are the peer's
seconds over llmkit's, in the median round; those of `.../cpu` are of the processors' time of all processes, which other
work on the machine changes less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from llmkit.config.base import Facts
from llmkit.console import emit_table, say
from llmkit.data import tokens_stage
from llmkit.data.tokens_config import TokensConfig
from llmkit.store.documents import Document, document_id, read_texts, write_documents
from llmkit.store.stage import Context, ResolvedInput
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.tokenizer.training import bpe_settings, train_bpe

THREADS = 2
BATCH = 1000
COMPETITORS = ("llmkit", "encode_batch", "encode_batch_fast")


def make_inputs(folder: Path, size: int) -> tuple[Path, Path]:
    """Documents of at least `size` bytes, where there are so many, and a tokenizer."""

    def documents() -> Iterator[Document]:
        left = size
        for root in map(Path, (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"])):
            for file in sorted(root.rglob("*.py")):
                if left > 0 and "site-packages" not in file.relative_to(root).parts:
                    text = file.read_text(encoding="utf-8", errors="ignore")
                    left -= len(text.encode())
                    yield Document(document_id(text), text, "library", file.relative_to(root).as_posix())

    write_documents(folder / "corpus", documents())
    texts = list(read_texts(folder / "corpus"))[::16]
    Tokenizer(train_bpe(lambda: texts, vocab_size=16_384), bpe_settings(None)).save(folder / "tokenizer")
    return folder / "corpus", folder / "tokenizer"


def processor_seconds() -> float:
    """Of this process and of the children that have ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def measure_here(competitor: str, corpus: Path, tokenizer: Path, folder: Path) -> dict[str, float]:
    """Seconds and tokens of one competitor, in a process that does nothing else."""
    if competitor == "llmkit":
        (folder / "tokens").mkdir(parents=True)
        inputs = {
            "data": ResolvedInput("data", "corpus", corpus, "", Facts("documents")),
            "tokenizer": ResolvedInput("tokenizer", "tokenizer", tokenizer, "", Facts("tokenizer")),
        }
        config = TokensConfig.model_validate({"data": "c", "tokenizer": "t", "executor": {"processes": THREADS}})
        began, processor = time.perf_counter(), processor_seconds()
        outcome = tokens_stage.run(config, Context("tokens", 0, folder / "tokens", inputs))
        tokens = outcome.summary["tokens"] - outcome.summary["documents"]
    else:
        backend = Tokenizer.load(tokenizer)._backend
        encode = getattr(backend, competitor)
        texts = list(read_texts(corpus))
        encode(texts[:20], add_special_tokens=False)
        began, processor, tokens = time.perf_counter(), processor_seconds(), 0
        for start in range(0, len(texts), BATCH):
            tokens += sum(len(found) for found in encode(texts[start : start + BATCH], add_special_tokens=False))
    return {
        "seconds": time.perf_counter() - began,
        "cpu": processor_seconds() - processor,
        "tokens": tokens,
        "mb": sum(len(text.encode()) for text in read_texts(corpus)) / 1e6,
    }


def measure(competitor: str, corpus: Path, tokenizer: Path, folder: Path) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--only", competitor, "--corpus", corpus, "--tokenizer", tokenizer]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(THREADS), "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(
        [*map(str, command), "--folder", str(folder)], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure, and print a table and, with --json, one line for machines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=COMPETITORS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure_here(options.only, options.corpus, options.tokenizer, options.folder)))
        return
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in COMPETITORS}
    with tempfile.TemporaryDirectory() as scratch:
        corpus, tokenizer = options.corpus, options.tokenizer
        if corpus is None or tokenizer is None:
            corpus, tokenizer = make_inputs(Path(scratch), options.megabytes * 10**6)
        for number in range(options.rounds):
            for name in COMPETITORS:
                folder = Path(scratch) / f"{name}-{number}"
                rounds[name].append(measure(name, corpus, tokenizer, folder))
                shutil.rmtree(folder, ignore_errors=True)
            seconds = [f"{name} {found[-1]['seconds']:.2f}s" for name, found in rounds.items()]
            say(f"round {number + 1}: {', '.join(seconds)}")
    counted = {name: {found["tokens"] for found in many} for name, many in rounds.items()}
    assert len(set.union(*counted.values())) == 1, counted
    median = {
        name: {key: statistics.median(found[key] for found in many) for key in ("seconds", "cpu", "mb", "tokens")}
        for name, many in rounds.items()
    }
    ratio = {}
    for name in COMPETITORS[1:]:
        for key, suffix in (("seconds", ""), ("cpu", "/cpu")):
            pairs = zip(rounds[name], rounds["llmkit"], strict=True)
            ratio[f"{name}{suffix}"] = statistics.median(theirs[key] / ours[key] for theirs, ours in pairs)
    columns = ["", "MB/s", "tokens/s", "seconds", "processor seconds", "llmkit's rate / its"]
    rows = [
        [name, m["mb"] / m["seconds"], round(m["tokens"] / m["seconds"]), m["seconds"], m["cpu"], ratio.get(name, 1.0)]
        for name, m in median.items()
    ]
    emit_table(columns, rows)
    if options.json:
        peers = {name: median[name]["seconds"] for name in COMPETITORS[1:]}
        result = {
            "bench": "tokenization",
            "cores": os.cpu_count(),
            "versions": {"tokenizers": version("tokenizers")},
            "llmkit": {"seconds": median["llmkit"]["seconds"], "megabytes": median["llmkit"]["mb"]},
            "peers": peers,
            "ratio": {f"tokenizers/{name}": value for name, value in ratio.items()},
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
