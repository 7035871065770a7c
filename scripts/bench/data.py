"""From pages and texts to token shards: llmkit's stages `data` and `tokens` beside datatrove's pipelines.

    python scripts/bench/data.py [--megabytes 200] [--pages DIR ...] [--texts DIR ...] [--processes 2] [--json]
    python scripts/bench/data.py --megabytes 20 --one-in 2      # to try it

Both read the same files, web archives (WARC) of HTML pages and JSON lines of plain texts, which `corpus/gather.py`
makes of what the machine has: by default the HTML and text files of /usr/share/doc (Debian's `-doc` packages) and the
standard library of Python, a part of it repeated with edits. Both do the same steps with the same settings in the same
number of processes:

- extract: the main text of pages. llmkit by resiliparse, its default; datatrove by trafilatura, its own default and
  the only extractor that its packages on PyPI bring. Resiliparse decides by a page's structure and takes more of its
  text than trafilatura does with `favour_precision`; the filters after it get more to do.
- filters: Gopher's repetition and quality filters with datatrove's thresholds, but for `--alphabetic` (manuals are full
  of numbers and signs).
- minhash: 14 buckets of 8 hashes over 5-grams of words; of each cluster one document stays.
- tokenize: a byte-level BPE of `--vocab` tokens, trained on some of the texts beforehand.

datatrove gets one document in `--one-in`; how it is configured is said in `corpus/trove.py`. Documents a second of a
step count the documents that reached it; `all` counts documents of the input, over the sum of datatrove's steps (its
start and imports left out) and over the whole time of llmkit's command (everything counted in). Ratios are llmkit's
documents a second over the peer's. `processor` ratios compare processor time over all processes, for machines that do
something else as well. `tokenizers/tokenize` is the rate, in bytes of text, of llmkit's tokenization over that of
`tokenizers` alone with as many threads, on texts that lie in memory.

llmkit then goes through twice the input; peaks are the largest resident sets of its processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import sysconfig
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from corpus.gather import gather
from corpus.watch import Taken, watch

from llmkit.console import emit_table, say
from llmkit.pipeline.run import Pipeline, load_experiment

PARTS = Path(__file__).parent / "corpus"
STEPS = ("extract", "filters", "minhash", "tokenize")
NEEDS = ("datatrove", "trafilatura", "spacy", "warcio", "cchardet", "orjson")
LIMIT = 1.5 * 2**30


def script(name: str, task: dict[str, Any], threads: int = 1) -> tuple[Taken, dict[str, Any]]:
    """Run one of the parts with a task; what it took, and what it says."""
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(threads)}
    taken = watch([sys.executable, str(PARTS / name), json.dumps(task)], environment)
    found: dict[str, Any] = json.loads(taken.output.splitlines()[-1])
    return taken, found


def prepare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The corpus, made unless the folder holds the same already."""
    asked = {
        "megabytes": options.megabytes,
        "one_in": options.one_in,
        "seed": options.seed,
        "pages": [str(path) for path in options.pages],
        "texts": [str(path) for path in options.texts],
    }
    note = folder / "corpus.json"
    if note.is_file() and json.loads(note.read_text())["asked"] == asked:
        known: dict[str, Any] = json.loads(note.read_text())["parts"]
        return known
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = {name: part.summary() for name, part in gather(folder, options).items()}
    note.write_text(json.dumps({"asked": asked, "parts": parts}))
    return parts


def train_tokenizer(corpus: Path, work: Path, vocab: int) -> Path:
    """A tokenizer of some of the texts, by llmkit."""
    config = {
        "run": "tokenizer",
        "runs_dir": str(work),
        "stages": {
            "texts": {
                "stage": "data",
                "sources": [{"kind": "jsonl", "files": [str(corpus / "sample" / "*.jsonl")]}],
                "work": {"keep": False},
            },
            "tokenizer": {"data": "texts", "vocab_size": vocab},
        },
    }
    file = work / "tokenizer.yaml"
    file.write_text(yaml.safe_dump(config))
    pipeline = Pipeline(load_experiment(file))
    pipeline.run()
    return pipeline.directory / "tokenizer" / "tokenizer"


def run_ours(sources: list[Path], work: Path, tokenizer: Path, options: argparse.Namespace) -> dict[str, Any]:
    """llmkit over some folders: seconds by step, memory, and what became of the documents."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    task = {
        "sources": [str(folder) for folder in sources],
        "work": str(work),
        "processes": options.processes,
        "tokenizer": str(tokenizer),
        "alphabetic": options.alphabetic,
    }
    taken, found = script("ours.py", task)
    return {
        "seconds": found["seconds"] | {"all": taken.seconds},
        "documents": found["documents"],
        "corpus": found["corpus"],
        "tokens": found["tokens"],
        "processor_seconds": taken.processor_seconds,
        "peak_bytes": taken.peaks[: options.processes + 1],
    }


def run_trove(corpus: Path, work: Path, tokenizer: Path, options: argparse.Namespace) -> dict[str, Any]:
    """datatrove over the sample, likewise."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    parts = json.loads((corpus / "corpus.json").read_text())["parts"]
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    task = {
        "source": str(corpus / "sample"),
        "work": str(work),
        "processes": options.processes,
        "tokenizer": str(tokenizer / "tokenizer.json"),
        "separator": settings["eos_token"],
        "alphabetic": options.alphabetic,
    }
    taken, found = script("trove.py", task)
    steps = found["seconds"]
    return {
        "seconds": steps | {"all": sum(steps.values()), "with start": taken.seconds},
        "documents": found["documents"] | {"all": parts["sample"]["documents"]},
        "processor_seconds": taken.processor_seconds,
        "peak_bytes": taken.peaks[: 2 * options.processes + 1],
    }


def rates(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Documents a second by step, medians of the rounds, with what else is told of the last round."""
    last = runs[-1]
    seconds = {step: statistics.median(run["seconds"][step] for run in runs) for step in last["seconds"]}
    speed = {step: last["documents"][step] / seconds[step] for step in (*STEPS, "all") if seconds.get(step)}
    processor = statistics.median(run["processor_seconds"] for run in runs)
    return {
        **last,
        "seconds": seconds,
        "documents_per_second": speed,
        "documents_per_processor_second": last["documents"]["all"] / processor,
        "processor_seconds": processor,
        "peak_bytes": max(run["peak_bytes"] for run in runs),
    }


def missing() -> list[str]:
    """Packages of the peer that are not there."""
    return [name for name in NEEDS if find_spec(name) is None]


def compare(work: Path, corpus: Path, parts: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured."""
    tokenizer = train_tokenizer(corpus, work, options.vocab)
    ours, theirs = [], []
    for number in range(options.rounds):
        ours.append(run_ours([corpus / "first"], work / "ours", tokenizer, options))
        say(f"round {number + 1}: llmkit took {ours[-1]['seconds']['all']:.1f} s")
        if not missing():
            theirs.append(run_trove(corpus, work / "trove", tokenizer, options))
            say(f"round {number + 1}: datatrove took {theirs[-1]['seconds']['with start']:.1f} s")
    found = {"llmkit": rates(ours), "peers": {"datatrove": rates(theirs) if theirs else {"missing": missing()}}}
    task = {"documents": str(work / "ours" / "bench" / "corpus"), "tokenizer": str(tokenizer / "tokenizer.json")}
    bare = [script("bare.py", task, options.processes)[1] for _ in range(options.rounds)]
    found["peers"]["tokenizers"] = {
        "bytes_per_second": statistics.median(run["bytes"] / run["seconds"] for run in bare)
    }
    mine = found["llmkit"]
    mine["tokenize_bytes_per_second"] = bare[0]["bytes"] / mine["seconds"]["tokenize"]
    twice = run_ours([corpus / "first", corpus / "second"], work / "ours", tokenizer, options)
    found["twice"] = {key: twice[key] for key in ("seconds", "documents", "processor_seconds", "peak_bytes")}
    found["corpus"] = parts
    return found


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """llmkit over its peers, above 1 where it is better."""
    ours, theirs = found["llmkit"], found["peers"]["datatrove"]
    ratio = {}
    if "missing" not in theirs:
        for step, speed in theirs["documents_per_second"].items():
            ratio[f"datatrove/{step}"] = ours["documents_per_second"][step] / speed
        name = "documents_per_processor_second"
        ratio["datatrove-processor/all"] = ours[name] / theirs[name]
    bare = found["peers"]["tokenizers"]["bytes_per_second"]
    ratio["tokenizers/tokenize"] = ours["tokenize_bytes_per_second"] / bare
    return ratio


def show(found: dict[str, Any], ratio: dict[str, float], options: argparse.Namespace) -> None:
    """Tables for people."""
    ours, theirs = found["llmkit"], found["peers"]["datatrove"]
    there = "missing" not in theirs
    rows = []
    for step, speed in ours["documents_per_second"].items():
        peer = theirs["documents_per_second"].get(step) if there else None
        rows.append([step, ours["documents"][step], ours["seconds"][step], speed, peer, ratio.get(f"datatrove/{step}")])
    first = found["corpus"]["first"]
    emit_table(
        ("step", "documents", "seconds", "documents/s", "datatrove's", "llmkit over it"),
        rows,
        title=f"{first['bytes'] / 1e6:.0f} MB, {first['documents']:,} documents, {options.processes} processes",
    )
    peaks = [("llmkit", ours), ("llmkit, twice the input", found["twice"]), *([("datatrove", theirs)] if there else [])]
    emit_table(
        ("run", "peak MiB of each process, largest first", "processor s"),
        [
            [name, " ".join(f"{size / 2**20:.0f}" for size in run["peak_bytes"]), run["processor_seconds"]]
            for name, run in peaks
        ],
    )
    for name, value in ratio.items():
        if not name.startswith("datatrove/"):
            print(f"{name}: {value:.2f}")
    if not there:
        say(f"datatrove needs {', '.join(theirs['missing'])}, and was not measured")


def versions() -> dict[str, str]:
    """Versions of what took part."""
    found = {}
    for package in ("datatrove", "trafilatura", "spacy", "resiliparse", "rensa", "tokenizers", "pyarrow", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def arguments() -> argparse.Namespace:
    """What the command line says."""
    documentation = Path("/usr/share/doc")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=200, help="of the input, in HTML and plain text")
    parser.add_argument("--one-in", type=int, default=4, help="datatrove gets one document in this many")
    parser.add_argument("--pages", type=Path, nargs="+", default=[documentation], help="folders of HTML files")
    texts = [documentation, Path(sysconfig.get_path("stdlib"))]
    parser.add_argument("--texts", type=Path, nargs="+", default=texts, help="folders of plain texts")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each, whose median counts")
    parser.add_argument("--alphabetic", type=float, default=0.6, help="share of words with a letter that is asked for")
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for everything, in which a corpus made before is found again")
    parser.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    return parser.parse_args()


def main() -> None:
    """Measure, print tables and, with --json, one line for machines."""
    options = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        corpus = work / "corpus"
        parts = prepare(corpus, options)
        found = compare(work, corpus, parts, options)
    ratio = ratios(found)
    show(found, ratio, options)
    if options.json:
        load = os.getloadavg()[0]
        head = {"bench": "data", "cores": len(os.sched_getaffinity(0)), "versions": versions(), "load": load}
        print(json.dumps({**head, **found, "ratio": ratio}))


if __name__ == "__main__":
    main()
