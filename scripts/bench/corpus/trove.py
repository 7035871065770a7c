"""The steps of `scripts/bench/data.py` by datatrove, in a process of its own: reads a task, prints what it took.

As datatrove's own example for a crawl has it, reader, extraction and filters are one pipeline without files between
them, MinHash are its four stages, and the last of them is one pipeline with the writing of documents and of tokens.
Chosen for speed where it lets one choose: files uncompressed in between, tokens unshuffled, whole files as tasks.

The seconds of a step are those that datatrove counts in it, divided by the number of processes that share them (never
less than the longest task), so that starting processes and importing packages is not counted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader, WarcReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers.jsonl import JsonlWriter

TIMEOUT = 30
"""Seconds for a page; with the one second that is the default, a busy machine loses pages and whole tasks."""
MINHASH = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
STEP_OF = {
    "Warc": "extract",
    "Trafilatura": "extract",
    "Gopher Repetition": "filters",
    "Gopher Quality": "filters",
    "MinHash": "minhash",
    "TOKENIZER": "tokenize",
}
COUNTED = {
    "extract": ("Trafilatura", "total"),
    "filters": ("Gopher Repetition", "total"),
    "minhash": ("stage 1", "total"),
    "tokenize": ("stage 4", "forwarded"),
}
"""The block whose count is that of the documents of a step."""


def imported(data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
    """Import what each task's extraction would import anew in a process of its own, which is forked from this one."""
    import trafilatura  # noqa: F401

    yield from data


class Trove:
    """Runs pipelines one after another and adds up what they take.

    Args:
        work: an empty folder.
        processes: how many work at once.
    """

    def __init__(self, work: Path, processes: int) -> None:
        self._work = work
        self._processes = processes
        self._pipelines = 0
        self.seconds: dict[str, float] = {}
        self.documents: dict[str, int] = {}

    def run(self, pipeline: list[Any], tasks: int) -> None:
        """Run a pipeline; readers and writers in between are counted as `write`."""
        self._pipelines += 1
        executor = LocalPipelineExecutor(
            pipeline,
            tasks=tasks,
            workers=min(tasks, self._processes),
            logging_dir=str(self._work / "logs" / str(self._pipelines)),
        )
        stats = executor.run()
        for block in stats.stats:
            step = next((step for name, step in STEP_OF.items() if name in block.name), "write")
            times = block.time_stats
            longest = times.global_max if times.n_tasks > 1 else times.total
            self.seconds[step] = self.seconds.get(step, 0.0) + max(times.total / self._processes, longest)
            for counted, (name, count) in COUNTED.items():
                if name in block.name:
                    self.documents[counted] = self.documents.get(counted, 0) + int(block[count].total)


def main() -> None:
    """Do all steps over the sample."""
    task = json.loads(sys.argv[1])
    source, work = Path(task["source"]), Path(task["work"])
    trove = Trove(work, task["processes"])
    filtered = work / "filtered"

    def filters() -> list[Any]:
        return [GopherRepetitionFilter(), GopherQualityFilter(max_non_alpha_words_ratio=task["alphabetic"])]

    def write(kind: str, folder: Path) -> JsonlWriter:
        return JsonlWriter(str(folder), output_filename=kind + "-${rank}.jsonl", compression=None)

    pages = len(list(source.glob("*.warc.gz")))
    reader = WarcReader(str(source), glob_pattern="*.warc.gz")
    extract = Trafilatura(timeout=TIMEOUT)
    trove.run([reader, imported, extract, *filters(), write("pages", filtered)], pages)
    texts = len(list(source.glob("*.jsonl")))
    trove.run([JsonlReader(str(source), glob_pattern="*.jsonl"), *filters(), write("texts", filtered)], texts)
    files = len(list(filtered.glob("*.jsonl")))
    signatures, pairs, removed = str(work / "signatures"), str(work / "pairs"), str(work / "removed")
    trove.run([JsonlReader(str(filtered)), MinhashDedupSignature(signatures, MINHASH)], files)
    trove.run([MinhashDedupBuckets(signatures, pairs, config=MINHASH)], MINHASH.num_buckets)
    trove.run([MinhashDedupCluster(pairs, removed, MINHASH)], 1)
    last = [
        JsonlReader(str(filtered)),
        MinhashDedupFilter(removed),
        write("kept", work / "kept"),
        DocumentTokenizer(
            str(work / "tokens"), task["tokenizer"], eos_token=task["separator"], shuffle_documents=False
        ),
    ]
    trove.run(last, files)
    print(json.dumps({"seconds": trove.seconds, "documents": trove.documents}))


if __name__ == "__main__":
    main()
