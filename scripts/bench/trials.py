"""Runs of `pretrain` that are alike but for a few settings, for benchmarks and ablations."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from llmkit.pipeline.run import Pipeline, load_experiment

PIECE = 4000
"""Characters of a piece of text, which is a document of training or of validation."""


class Outcome(NamedTuple):
    """A finished run.

    Args:
        loss: on the validation split, at the end.
        curve: tokens and loss of each evaluation.
        tokens: in all.
    """

    loss: float
    curve: list[tuple[float, float]]
    tokens: int


def write_pieces(text: Path, path: Path) -> None:
    """Cut a text at line ends into documents of about `PIECE` characters."""
    pieces, piece = [], ""
    for line in text.read_text(encoding="utf-8").splitlines(keepends=True):
        if len(piece) > PIECE and not line.strip():
            pieces.append(piece)
            piece = ""
        piece += line
    rows = "".join(json.dumps({"text": text}) + "\n" for text in [*pieces, piece])
    path.write_text(rows, encoding="utf-8")


class Trials:
    """Runs on one corpus.

    Args:
        name: of the corpus.
        source: the corpus as a source of a stage `data`.
        options: of the command line.
        folder: where runs go.
    """

    def __init__(self, name: str, source: Mapping[str, Any], options: argparse.Namespace, folder: Path) -> None:
        self.name, self.source, self.options, self.folder = name, source, options, folder

    def run(self, seed: int, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Outcome]:
        """Train the stages with a seed, the first one's tokens serving all."""
        made = self.folder / f"{self.name}-0"
        corpus = {
            "corpus": {"stage": "data", "sources": [self.source], "splits": {"validation": 0.05}},
            "tokenizer": {"data": "corpus", "algorithm": "bpe", "vocab_size": self.options.vocab},
            "tokens": {"data": "corpus", "tokenizer": "tokenizer"},
        }
        data = "tokens" if seed == 0 else str(made / "tokens")
        experiment = {
            "run": f"{self.name}-{seed}",
            "runs_dir": str(self.folder),
            "seed": seed,
            "stages": (corpus if seed == 0 else {})
            | {name: self._stage(data, stage) for name, stage in stages.items()},
        }
        config = self.folder / f"{self.name}-{seed}.yaml"
        config.write_text(yaml.safe_dump(experiment, sort_keys=False), encoding="utf-8")
        Pipeline(load_experiment(config, [])).run([*stages], with_dependencies=True)
        return {name: self._outcome(self.folder / f"{self.name}-{seed}" / name) for name in stages}

    def _stage(self, data: str, stage: Mapping[str, Any]) -> dict[str, Any]:
        options = self.options
        shape = {"family": "llama", "layers": options.layers, "width": options.width, "context": options.length}
        common = {"stage": "pretrain", "data": data, "model": shape, "batch_size": options.batch}
        return {**common, "evaluate_batches": 1000, "evaluate_every": max(1, stage["steps"] // 5), **stage}

    def _outcome(self, directory: Path) -> Outcome:
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        per_step = self.options.batch * self.options.length
        curve = [(line["step"] * per_step, line["loss"]) for line in lines if line["split"] == "validation"]
        return Outcome(curve[-1][1], curve, int(curve[-1][0]))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what is trained on what."""
    parser.add_argument("--text", action="append", default=[], metavar="NAME=FILE", help="a plain text; repeatable")
    for option, default in (("layers", 4), ("width", 224), ("vocab", 4096), ("batch", 16), ("length", 256)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--runs", type=Path, help="where runs are kept; by default they are removed")


def text_sources(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """The texts named, as sources of a stage `data` by name."""
    sources: dict[str, dict[str, Any]] = {}
    for given in options.text:
        name, _, file = given.partition("=")
        write_pieces(Path(file), folder / f"{name}.jsonl")
        sources[name] = {"kind": "jsonl", "files": [str(folder / f"{name}.jsonl")]}
    return sources
