"""Tokens per second of pretraining: llmkit's loop against a plain loop around a `transformers` model of the same shape.

    python scripts/bench/pretrain.py [--layers 6 --width 384 --vocab 4096 --batch 16 --length 256] [--json]

Both train from random weights on random tokens with AdamW and clipping, in blocks of steps that take turns, so that
what else the machine does hits both alike. The first steps of each block are warm-up and not counted. llmkit runs its
whole loop (data, metrics, measured precision); the transformers loop is the usual one: `model(ids, labels=ids)`,
backward, clip, `torch.optim.AdamW`, once in float32 and once under bfloat16 autocast.

Ratios are llmkit's median tokens per second over the peer's: `transformers/...` against the faster of its two
precisions, `transformers-fp32/...` against float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmkit.console import emit_table, say
from llmkit.model.config import ModelConfig
from llmkit.model.initialization import build
from llmkit.model.spec import ModelSpec
from llmkit.pretrain.batches import Batch, causal_batch, masked_batch, split_batch
from llmkit.pretrain.config import MaskConfig, PretrainConfig
from llmkit.pretrain.masking import Masking
from llmkit.pretrain.objective import LanguageModelling
from llmkit.store.stage import Context
from llmkit.train.contract import StatelessSource
from llmkit.train.engine import matrix_rate
from llmkit.train.loop import train

MASK_ID = 4
SPECIAL_IDS = range(5)
Block = Callable[[], list[float]]


class RandomTokens(StatelessSource):
    """Random sequences, made before they are asked for."""

    def __init__(self, options: argparse.Namespace, masked: bool) -> None:
        rng = np.random.default_rng(0)
        shape = (options.batch, options.length + (not masked))
        masking = Masking(MaskConfig(), mask_id=MASK_ID, vocab_size=options.vocab, special_ids=SPECIAL_IDS, seed=0)
        self.made = [
            masked_batch(tokens, masking, "bench", number) if masked else causal_batch(tokens)
            for number, tokens in enumerate(rng.integers(5, options.vocab, (8, *shape)))
        ]
        self.micro = options.batch

    def batches(self, step: int) -> list[Batch]:
        """The whole batch at once."""
        return split_batch(self.made[step % len(self.made)], self.micro)


def architecture(options: argparse.Namespace, scenario: str) -> ModelConfig:
    """The shape that all competitors have."""
    family = "llama" if scenario == "causal" else "bert"
    spec = ModelSpec(family=family, layers=options.layers, width=options.width, context=max(512, options.length))
    return spec.resolve(options.vocab, pad_id=0)


def llmkit_block(options: argparse.Namespace, scenario: str) -> tuple[Block, dict[str, str]]:
    """A function that trains for a block of steps and returns the seconds of each that counts."""
    config = architecture(options, scenario)
    source = RandomTokens(options, scenario == "masked")
    settings = {"steps": options.steps + options.warmup, "batch_size": options.batch, "log_every": 1}
    made_of = {"data": "-", "model": {"family": config.family, "layers": config.layers, "width": config.width}}
    stage = PretrainConfig.model_validate({**made_of, **settings, "compile": options.compile})
    note = {}

    def block() -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            train(
                model=build(config, seed=0),
                objective=LanguageModelling(),
                source=source,
                config=stage,
                context=Context("llmkit", 0, directory),
                save=lambda path: path.mkdir(),
            )
            note["precision"] = json.loads((directory / "engine.json").read_text())["precision"]
            lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return [options.batch * options.length / line["tokens_per_second"] for line in lines][options.warmup :]

    return block, note


def transformers_block(options: argparse.Namespace, scenario: str, precision: str) -> Block:
    """The same for the usual loop around a `transformers` model of the same number of parameters."""
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

    config = architecture(options, scenario)
    shape: dict[str, Any] = {
        "vocab_size": options.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": True,
    }
    if scenario == "causal":
        model = LlamaForCausalLM(LlamaConfig(**shape))
    else:
        model = BertForMaskedLM(BertConfig(**shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    ours = config.parameter_count()
    theirs = sum(parameter.numel() for parameter in model.parameters())
    assert ours == theirs, f"other shapes: {ours} and {theirs} parameters"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    source = RandomTokens(options, scenario == "masked")
    model.train()

    def labels(batch: Batch) -> torch.Tensor:
        if batch.positions is None:
            return batch.input_ids
        found = torch.full_like(batch.input_ids, -100)
        found.view(-1)[batch.positions] = batch.targets
        return found

    inputs = [(batch.input_ids, labels(batch)) for batch in source.made]

    def block() -> list[float]:
        seconds = []
        for step in range(options.steps + options.warmup):
            start = time.perf_counter()
            ids, wanted = inputs[step % len(inputs)]
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                loss = model(input_ids=ids, labels=wanted).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            seconds.append(time.perf_counter() - start)
        return seconds[options.warmup :]

    return block


def measure(options: argparse.Namespace, scenario: str) -> dict[str, Any]:
    """Tokens per second by competitor, and what there is to say of them."""
    block, note = llmkit_block(options, scenario)
    competitors: dict[str, Block] = {"llmkit": block}
    missing: list[str] = []
    try:
        version("transformers")
        for precision in ("fp32", "bf16"):
            competitors[f"transformers {precision}"] = transformers_block(options, scenario, precision)
    except PackageNotFoundError:
        missing.append("transformers")
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    rates: list[float] = []
    for number in range(options.rounds):
        for name, run in competitors.items():
            seconds[name] += run()
        rates.append(matrix_rate("cpu", torch.bfloat16))
        say(f"{scenario}: round {number + 1} of {options.rounds} done")
    tokens = options.batch * options.length
    flops = architecture(options, scenario).flops_per_token(options.length)
    rate = max(rates)
    rows = {
        name: {
            "tokens_per_second": tokens / statistics.median(found),
            "best_tokens_per_second": tokens / min(found),
            "share_of_bf16_matrix_rate": tokens / statistics.median(found) * flops / rate,
        }
        for name, found in seconds.items()
    }
    rows["llmkit"]["precision"] = note["precision"]
    return {"rows": rows, "missing": missing, "bf16_matrix_rate": rate}


def ratios(scenario: str, rows: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """llmkit's speed over that of its peers, above 1 where llmkit is faster."""
    ours = rows["llmkit"]["tokens_per_second"]
    theirs = {name.split()[1]: row["tokens_per_second"] for name, row in rows.items() if name != "llmkit"}
    if theirs:
        yield f"transformers/{scenario}", ours / max(theirs.values())
        yield f"transformers-fp32/{scenario}", ours / theirs["fp32"]


def main() -> None:
    """Measure, print a table and, with --json, one line for machines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 6), ("width", 384), ("vocab", 4096), ("batch", 16), ("length", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=4, help="steps of a block that count")
    parser.add_argument("--warmup", type=int, default=2, help="steps of a block before them")
    parser.add_argument("--rounds", type=int, default=3, help="blocks of each competitor")
    parser.add_argument("--scenarios", default="causal,masked", help="causal, masked, or both")
    parser.add_argument("--compile", action="store_true", help="let llmkit compile its blocks")
    parser.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    options = parser.parse_args()
    found = {scenario: measure(options, scenario) for scenario in options.scenarios.split(",")}
    table = []
    for scenario, result in found.items():
        times = dict(ratios(scenario, result["rows"])).get(f"transformers/{scenario}")
        for name, row in result["rows"].items():
            share = f"{row['share_of_bf16_matrix_rate']:.0%}"
            loop = f"{name} {row['precision']}" if name == "llmkit" else name
            speeds = [row["tokens_per_second"], row["best_tokens_per_second"]]
            table.append([scenario, loop, *speeds, share, times if name == "llmkit" else None])
    shape = f"{options.layers} layers, width {options.width}, vocabulary {options.vocab}"
    emit_table(
        ("objective", "loop", "tokens/s", "best", "matrix rate", "ratio"),
        table,
        title=f"{shape}, {options.batch} x {options.length} tokens, {torch.get_num_threads()} threads",
    )
    for missing in sorted({name for result in found.values() for name in result["missing"]}):
        say(f"{missing} is not installed and was not measured")
    if options.json:
        print(json.dumps(as_json(options, found)))


def as_json(options: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """Everything measured, for machines."""
    versions = {}
    for package in ("torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    peers: dict[str, dict[str, Any]] = {}
    for scenario, result in found.items():
        for name, row in result["rows"].items():
            if name != "llmkit":
                peers.setdefault(name, {})[scenario] = row
        for name in result["missing"]:
            peers[name] = {"missing": True}
    return {
        "bench": "pretrain",
        "cores": torch.get_num_threads(),
        "versions": versions,
        "shape": {name: getattr(options, name) for name in ("layers", "width", "vocab", "batch", "length")},
        "llmkit": {scenario: result["rows"]["llmkit"] for scenario, result in found.items()},
        "bf16_matrix_rate": {scenario: result["bf16_matrix_rate"] for scenario, result in found.items()},
        "peers": peers,
        "ratio": {name: ratio for s, result in found.items() for name, ratio in ratios(s, result["rows"])},
    }


if __name__ == "__main__":
    main()
