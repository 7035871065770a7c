"""Pretraining: llmkit's loop against the `Trainer` of `transformers` and a hand-written compiled PyTorch loop.

    python scripts/bench/pretrain.py [--layers 6 --width 384 --vocab 4096 --batch 16 --length 256] [--json]

All train a model of one shape and number of parameters (`causal`: Llama, `masked`: BERT) on the same random tokens with
AdamW and clipping, each in a process of its own, in blocks of steps that take turns, so that what else the machine does
hits all alike. Warm-up, compilation included, comes before the first turn and is shown apart. Whole steps are timed:

- llmkit: `llmkit.train.loop.train` with its data source, measured precision, metrics and guard against spikes, in
  micro-batches of `--micro-batch` sequences for its memory, its blocks compiled.
- handwritten: `loops/handwritten.py`, bfloat16 autocast over float32 weights, `torch.compile` of model and loss,
  torch's attention kernel, fused AdamW; the whole batch at once. Where products in float32 are faster, in float32.
- transformers-fp32, transformers-bf16: `transformers.Trainer` with `use_cpu`, as it comes, and with `bf16`.

Ratios are llmkit's median tokens a second over the peer's, above 1 where llmkit is faster. `transformers/...` counts
the faster of the Trainer's two precisions, `transformers-fp32/...` the Trainer as it comes. Ratios named
`...-memory/...` are the peer's peak memory (the process's largest resident set, libraries included) over llmkit's; of
the Trainer the leaner of the two counts. `causal-large` is the causal model with `--large-vocab` tokens, for memory
alone.

The share of the matrix rate counts 6 FLOPs a parameter and token against products of large matrices in bfloat16, or in
float32 where those are faster, measured between the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from llmkit.console import emit_table, say
from llmkit.model.config import ModelConfig
from llmkit.model.spec import ModelSpec
from llmkit.train.engine import matrix_rate

WORKER = str(Path(__file__).parent / "loops" / "worker.py")
COMPETITORS = ("llmkit", "handwritten", "transformers-fp32", "transformers-bf16")
NEEDS = {"transformers-fp32": ("transformers", "accelerate"), "transformers-bf16": ("transformers", "accelerate")}


def architecture(options: argparse.Namespace, scenario: str, vocabulary: int) -> ModelConfig:
    """The shape that all competitors have."""
    family = "llama" if scenario == "causal" else "bert"
    context = max(512, options.length)
    return ModelSpec(family=family, layers=options.layers, width=options.width, context=context).resolve(
        vocabulary, pad_id=0
    )


class Competitor:
    """A process that trains when it is its turn.

    Args:
        name: one of `COMPETITORS`.
        shape: what `loops/worker.py` is told.
    """

    def __init__(self, name: str, shape: dict[str, Any]) -> None:
        self.name = name
        command = [sys.executable, WORKER, json.dumps({**shape, "competitor": name})]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds: list[float] = []
        found = self._answer()
        self.warmup, self.peak = found["seconds"], found["peak"]

    def turn(self) -> None:
        """Train for a block of steps."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        found = self._answer()
        self.seconds.append(found["seconds"])
        self.peak = found["peak"]

    def leave(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with code {self._process.wait()}; see above")
        answer: dict[str, float] = json.loads(line)
        return answer


def there(name: str) -> bool:
    """Whether a competitor's packages are installed."""
    return all(find_spec(package) is not None for package in NEEDS.get(name, ()))


def shape_of(options: argparse.Namespace, scenario: str, vocabulary: int) -> dict[str, Any]:
    """What a competitor is told."""
    config = architecture(options, scenario, vocabulary)
    names = ("layers", "width", "batch", "length", "steps", "warmup", "compile")
    return {
        **{name: getattr(options, name) for name in names},
        "scenario": scenario,
        "micro_batch": min(options.micro_batch, options.batch),
        "vocab": vocabulary,
        "heads": config.heads,
        "mlp_width": config.mlp_width,
        "context": config.context,
        "parameters": config.parameter_count(),
        "bf16": options.dtype == torch.bfloat16,
    }


def measure(options: argparse.Namespace, scenario: str, vocabulary: int, rounds: int) -> dict[str, Any]:
    """Speed and memory of each competitor in a scenario; of memory alone, without rounds."""
    competitors, shape = [], shape_of(options, scenario, vocabulary)
    for name in filter(there, options.competitors.split(",")):
        competitors.append(Competitor(name, shape))
        say(f"{scenario}: {name} is warm after {competitors[-1].warmup:.0f} s")
        if not rounds:
            competitors[-1].leave()
    rates = [matrix_rate("cpu", options.dtype)]
    for number in range(rounds):
        for competitor in competitors:
            competitor.turn()
        rates.append(matrix_rate("cpu", options.dtype))
        say(f"{scenario}: round {number + 1} of {rounds} done")
    for competitor in competitors if rounds else ():
        competitor.leave()
    tokens = options.steps * options.batch * options.length
    rows = {}
    for competitor in competitors:
        row = rows[competitor.name] = {"warmup_seconds": competitor.warmup, "peak_bytes": competitor.peak}
        if rounds:
            speed = tokens / statistics.median(competitor.seconds)
            row |= {"tokens_per_second": speed, "best_tokens_per_second": tokens / min(competitor.seconds)}
            row["share_of_matrix_rate"] = speed * 6 * shape["parameters"] / max(rates)
    return {"rows": rows, "matrix_rate": max(rates)}


def ratios(scenario: str, rows: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """llmkit against its peers, above 1 where it is better."""
    ours = rows["llmkit"]
    peers = {"handwritten": ["handwritten"], "transformers": ["transformers-fp32", "transformers-bf16"]}
    peers["transformers-fp32"] = ["transformers-fp32"]
    for peer, names in peers.items():
        found = [rows[name] for name in names if name in rows]
        if found and "tokens_per_second" in ours:
            fastest = max(row["tokens_per_second"] for row in found)
            yield f"{peer}/{scenario}", ours["tokens_per_second"] / fastest
        if found:
            yield f"{peer}-memory/{scenario}", min(row["peak_bytes"] for row in found) / ours["peak_bytes"]


def show(scenario: str, result: dict[str, Any], found: dict[str, float]) -> list[list[Any]]:
    """Lines of the table."""
    lines = []
    for name, row in result["rows"].items():
        share = f"{row['share_of_matrix_rate']:.0%}" if "share_of_matrix_rate" in row else None
        speed, memory = found.get(f"{name}/{scenario}"), found.get(f"{name}-memory/{scenario}")
        if name == "transformers-bf16":
            speed = found.get(f"transformers/{scenario}") if speed is None else speed
        lines.append(
            [name, row.get("tokens_per_second"), share, speed, row["peak_bytes"] / 2**20, memory, row["warmup_seconds"]]
        )
    return lines


def main() -> None:
    """Measure, print a table and, with --json, one line for machines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 6), ("width", 384), ("vocab", 4096), ("batch", 16), ("length", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--large-vocab", type=int, default=50_000, help="of `causal-large`; 0 leaves it out")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--warmup", type=int, default=4, help="steps before the first turn")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each competitor")
    parser.add_argument("--scenarios", default="causal,masked", help="causal, masked, or both")
    parser.add_argument("--competitors", default=",".join(COMPETITORS), help="which of them take part")
    parser.add_argument("--micro-batch", type=int, default=8, help="llmkit's `micro_batch_size`")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="llmkit's `compile`")
    parser.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    options = parser.parse_args()
    options.dtype = max((torch.bfloat16, torch.float32), key=lambda dtype: matrix_rate("cpu", dtype))
    precision = "bf16" if options.dtype == torch.bfloat16 else "fp32"
    say(f"products are fastest in {precision} here")
    found = {
        scenario: measure(options, scenario, options.vocab, options.rounds) for scenario in options.scenarios.split(",")
    }
    if options.large_vocab:
        found["causal-large"] = measure(options, "causal", options.large_vocab, 0)
    compared = {name: ratio for scenario in found for name, ratio in ratios(scenario, found[scenario]["rows"])}
    shape = f"{options.layers} layers, width {options.width}, {options.batch} x {options.length} tokens"
    for scenario, result in found.items():
        vocabulary = options.large_vocab if scenario == "causal-large" else options.vocab
        emit_table(
            ("loop", "tokens/s", f"{precision} rate", "ratio", "peak MiB", "ratio", "warm-up s"),
            show(scenario, result, compared),
            title=f"{scenario}: {shape}, vocabulary {vocabulary:,}, {torch.get_num_threads()} threads",
        )
    say("ratios: llmkit's speed over the peer's, and the peer's peak memory over llmkit's")
    missing = [name for name in COMPETITORS if not there(name)]
    for name in missing:
        say(f"{name} needs {' and '.join(NEEDS[name])}, and was not measured")
    if options.json:
        print(json.dumps(as_json(options, found, compared, missing)))


def as_json(
    options: argparse.Namespace, found: dict[str, Any], compared: dict[str, float], missing: list[str]
) -> dict[str, Any]:
    """Everything measured, for machines."""
    versions = {}
    for package in ("torch", "transformers", "accelerate"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    by_name = {
        name: {scenario: result["rows"][name] for scenario, result in found.items() if name in result["rows"]}
        for name in COMPETITORS
    }
    shape = {name: getattr(options, name) for name in ("layers", "width", "vocab", "large_vocab", "batch", "length")}
    return {
        "bench": "pretrain",
        "cores": torch.get_num_threads(),
        "versions": versions,
        "shape": shape,
        "llmkit": {
            **by_name.pop("llmkit"),
            "compiled": options.compile,
            "micro_batch": options.micro_batch,
        },
        "matrix_precision": "bf16" if options.dtype == torch.bfloat16 else "fp32",
        "matrix_rate": {scenario: result["matrix_rate"] for scenario, result in found.items()},
        "peers": by_name | {name: {"missing": True} for name in missing},
        "ratio": compared,
    }


if __name__ == "__main__":
    main()
