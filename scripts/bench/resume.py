"""Going on in the middle of an epoch: how long the first batch takes after a start at step 0 and at the millionth.

    python scripts/bench/resume.py [--steps 1000000] [--rounds 15] [--json]

Shards of 8.6 billion tokens (files with holes: nothing of them is on the disk) are opened anew for each measurement,
and one batch of 16 sequences of 256 tokens is made: of one source, of three that are mixed, and of the last of 16
ranks. Each batch is made twice and the second time counts, so that the pages it lies on are in memory. Step 0 and the
others take turns, and each round takes the step after that of the round before, as some steps need a few more turns of
the permutation than others; the table shows medians. Beside it `torch`: a `RandomSampler` of as many windows in a
`BatchSampler`, whose batches are passed over up to the step, as a `DataLoader` without a state is gone on with. Ratios:
`millionth/first` is the time at the last step over that at step 0, `torch/skip` torch's seconds there over llmkit's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import BatchSampler, RandomSampler

from llmkit.console import emit_table, say
from llmkit.data.loader import TokenWindows
from llmkit.data.shards import FORMAT
from llmkit.pretrain.course import Course, Phase
from llmkit.pretrain.mixture import Mixture
from llmkit.pretrain.stream import TrainingStream
from llmkit.store.files import write_json_atomic
from llmkit.train.contract import Part

LENGTH, BATCH = 256, 16
WINDOWS = 1 << 25
SHARD_TOKENS, DOCUMENT_TOKENS = 1 << 30, 4096


def write_holes(directory: Path, windows: int) -> Path:
    """Shards whose tokens are all 0, which take no room on a disk that knows holes."""
    folder = directory / "train"
    folder.mkdir(parents=True)
    left, shards = windows * LENGTH + DOCUMENT_TOKENS, []
    while left:
        tokens = min(left, SHARD_TOKENS)
        name = f"{len(shards):05d}"
        with (folder / f"{name}.bin").open("wb") as stream:
            stream.truncate(2 * tokens)
        with (folder / f"{name}.idx").open("wb") as stream:
            np.save(stream, np.arange(0, tokens + 1, DOCUMENT_TOKENS, dtype="<u8"), allow_pickle=False)
        shards.append({"name": name, "tokens": tokens, "documents": tokens // DOCUMENT_TOKENS})
        left -= tokens
    totals = {key: sum(shard[key] for shard in shards) for key in ("tokens", "documents")}
    tokenizer = {"digest": "", "vocab_size": 50_000}
    index = {"format": FORMAT, "dtype": "uint16", **totals, "text_bytes": 0, "separator": None}
    write_json_atomic(folder / "index.json", {**index, "tokenizer": tokenizer, "shards": shards})
    return directory


def first_batch(sources: list[Path], step: int, part: Part) -> float:
    """Seconds from nothing to the batch of a step."""
    began = time.perf_counter()
    course = Course([Phase(BATCH, LENGTH)], 1 << 22)
    stream = TrainingStream(
        [TokenWindows(source, "train", LENGTH) for source in sources],
        course,
        Mixture([1.0 + number for number in range(len(sources))], course),
        micro_batch_size=BATCH,
        seed=1,
        masking=None,
        apart=True,
        part=part,
    )
    (batch,) = stream.batches(step)
    assert batch.input_ids.shape == (max(1, BATCH // part.count), LENGTH)
    return time.perf_counter() - began


def skip_by_torch(step: int) -> float:
    """Seconds until the indices of the batch of a step."""
    began = time.perf_counter()
    sampler = RandomSampler(range(WINDOWS), generator=torch.Generator().manual_seed(1))
    next(islice(BatchSampler(sampler, BATCH, drop_last=True), step, None))
    return time.perf_counter() - began


def main() -> None:
    """Measure, and print a table and, with --json, one line for machines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    steps = (0, 1000, options.steps)
    with tempfile.TemporaryDirectory() as scratch:
        sources = [write_holes(Path(scratch) / f"{number}", WINDOWS >> number) for number in range(3)]
        cases = {
            "one source": (sources[:1], Part()),
            "three sources": (sources, Part()),
            "the last of 16 ranks": (sources[:1], Part(15, 16)),
        }
        found: dict[tuple[str, int], list[float]] = {(name, step): [] for name in cases for step in steps}
        for number in range(options.rounds):
            for name, (places, part) in cases.items():
                for step in (*steps[number % 3 :], *steps[: number % 3]):
                    first_batch(places, step + number, part)
                    found[name, step].append(first_batch(places, step + number, part))
    say("torch passes over the batches before")
    torch_seconds = [skip_by_torch(0), skip_by_torch(options.steps)]
    median = {key: statistics.median(times) for key, times in found.items()}
    rows = [[name, *(round(1000 * median[name, step], 2) for step in steps)] for name in cases]
    rows.append(["torch, indices alone", 1000 * torch_seconds[0], None, 1000 * torch_seconds[1]])
    emit_table(["milliseconds to the batch of", *(f"step {step:,}" for step in steps)], rows)
    if options.json:
        last = median["one source", options.steps]
        ratio = {f"millionth/first/{name}": median[name, options.steps] / median[name, 0] for name in cases}
        result = {
            "bench": "resume",
            "cores": os.cpu_count(),
            "versions": {"torch": version("torch")},
            "llmkit": {f"{name}/{step}": seconds for (name, step), seconds in median.items()},
            "peers": {"torch/first": torch_seconds[0], "torch/skip": torch_seconds[1]},
            "ratio": {**ratio, "torch/skip": torch_seconds[1] / last},
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
