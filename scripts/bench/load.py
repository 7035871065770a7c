"""Peak memory and seconds of opening a model: llmkit against `transformers`, from the same files.

    python scripts/bench/load.py [--layers 8 --width 768 --vocab 60000] [--rounds 3] [--json]
    python scripts/bench/load.py --model DIRECTORY

Without `--model`, a Llama with random fp32 weights is written: as one file of safetensors, as shards, and as
pytorch_model.bin. Each is opened as stored and in bf16. Every measurement is a process of its own, which has opened a
tiny model before, so that imports are not counted; both competitors take turns, and files are in the page cache. A
model counts as open when one number of each page of its weights has been read: weights merely mapped are not there.
`transformers` leaves weights that need no conversion mapped from the file, which takes less work than a copy.

Memory is the growth of the process's resident set at its peak, over the bytes of the weights as they are in the end.
Ratios are the peer's seconds, or its peak memory (`transformers-memory/...`), over llmkit's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from llmkit.console import emit_table, say
from llmkit.model.initialization import build
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec

DTYPES = {"stored": None, "bf16": torch.bfloat16}


def write_models(folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """The directories that are opened, by their names in the table."""
    tiny = ModelSpec(family="llama", layers=1, width=16, heads=2, context=32).resolve(16, pad_id=0)
    save_model(build(tiny, seed=0), folder / "tiny")
    if options.model:
        return {"model": options.model}
    spec = ModelSpec(family="llama", layers=options.layers, width=options.width, context=512)
    model = build(spec.resolve(options.vocab, pad_id=0), seed=0)
    save_model(model, folder / "one file")
    save_model(model, folder / "shards", max_shard_size=sum(p.nbytes for p in model.parameters()) // 4)
    save_model(model, folder / "pickle")
    from safetensors.torch import load_file

    torch.save(load_file(folder / "pickle" / "model.safetensors"), folder / "pickle" / "pytorch_model.bin")
    (folder / "pickle" / "model.safetensors").unlink()
    return {name: folder / name for name in ("one file", "shards", "pickle")}


def open_model(competitor: str, directory: Path, dtype: torch.dtype | None) -> torch.nn.Module:
    """The model, by llmkit or its peer."""
    if competitor == "llmkit":
        from llmkit.model.load import load_model

        return load_model(directory, dtype=dtype)
    from transformers import AutoModel, AutoModelForCausalLM

    kind = AutoModelForCausalLM if (directory / "generation_config.json").exists() else AutoModel
    model: torch.nn.Module = kind.from_pretrained(directory, dtype="auto" if dtype is None else dtype)
    return model


def measure_here(competitor: str, directory: Path, dtype: str, tiny: Path) -> dict[str, float]:
    """Seconds and memory in this process, which does nothing else."""
    open_model(competitor, tiny, DTYPES[dtype])
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _status("VmRSS")
    start, processor = time.perf_counter(), time.process_time()
    model = open_model(competitor, directory, DTYPES[dtype])
    weights = {parameter.data_ptr(): parameter for parameter in model.parameters()}
    touched = [parameter.detach().view(-1)[::1024].float().sum() for parameter in weights.values()]
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    assert all(bool(total.isfinite()) for total in touched)
    size = sum(parameter.nbytes for parameter in weights.values())
    peak = (_status("VmHWM") - before) / size
    return {"seconds": seconds, "processor_seconds": processor, "peak": peak, "megabytes": size / 1e6}


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def measure(competitor: str, directory: Path, dtype: str, tiny: Path) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--measure", competitor, str(directory), dtype, str(tiny)]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(models: dict[str, Path], tiny: Path, options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Median of the rounds, by scenario and competitor."""
    competitors = ["llmkit", *(["transformers"] if find_spec("transformers") else [])]
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name, directory in models.items():
        for file in directory.iterdir():
            if file.is_file():
                shutil.copyfile(file, os.devnull)
        for dtype in DTYPES:
            found: dict[str, list[dict[str, float]]] = {competitor: [] for competitor in competitors}
            for _ in range(options.rounds):
                for competitor in competitors:
                    found[competitor].append(measure(competitor, directory, dtype, tiny))
            rows[f"{name}, {dtype}"] = {
                competitor: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
                for competitor, runs in found.items()
            }
            say(f"{name}, {dtype}: done")
    return rows


def as_json(rows: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Everything measured, for machines."""
    ratio = {}
    for scenario, found in rows.items():
        if "transformers" in found:
            ours, theirs = found["llmkit"], found["transformers"]
            ratio[f"transformers/{scenario}"] = theirs["seconds"] / ours["seconds"]
            ratio[f"transformers-memory/{scenario}"] = theirs["peak"] / ours["peak"]
    versions = {}
    for package in ("torch", "safetensors", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    theirs = {scenario: found["transformers"] for scenario, found in rows.items() if "transformers" in found}
    return {
        "bench": "load",
        "cores": torch.get_num_threads(),
        "versions": versions,
        "llmkit": {scenario: found["llmkit"] for scenario, found in rows.items()},
        "peers": {"transformers": theirs or {"missing": True}},
        "ratio": ratio,
    }


def main() -> None:
    """Measure, print a table and, with --json, one line for machines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 8), ("width", 768), ("vocab", 60_000), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", type=Path, help="a Hugging Face model directory to open in place of written ones")
    parser.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        competitor, directory, dtype, tiny = options.measure
        print(json.dumps(measure_here(competitor, Path(directory), dtype, Path(tiny))))
        return
    with tempfile.TemporaryDirectory() as folder:
        models = write_models(Path(folder), options)
        rows = compare(models, Path(folder) / "tiny", options)
    table = [
        [scenario, competitor, row["megabytes"], row["peak"], row["seconds"], row["processor_seconds"]]
        for scenario, found in rows.items()
        for competitor, row in found.items()
    ]
    emit_table(
        ("weights", "opened by", "MB", "peak / weights", "seconds", "of processor"),
        table,
        title=f"Opening a model, {torch.get_num_threads()} threads, median of {options.rounds}",
    )
    if not find_spec("transformers"):
        say("transformers is not installed and was not measured")
    if options.json:
        print(json.dumps(as_json(rows)))


if __name__ == "__main__":
    main()
