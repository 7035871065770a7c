"""How long training stands still for a checkpoint: in the background, in the foreground, and by `torch.save`.

    python scripts/bench/checkpoints.py [--rounds 9] [--json]

What is saved is a 12M Llama-shaped model with AdamW's state (146 MB), and for llmkit its Hugging Face directory as
well. Between checkpoints the model is trained for a few steps. The three take turns; the table shows medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from llmkit.console import emit_table
from llmkit.model.initialization import build
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer
from llmkit.store.folders import Folder
from llmkit.train.checkpoints.checkpoint import Checkpoints, Contents
from llmkit.train.checkpoints.config import CheckpointsConfig
from llmkit.train.checkpoints.state import optimizer_tensors, weight_tensors
from llmkit.train.checkpoints.twin import Twin


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure, and print a table and, with --json, one line for machines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    spec = ModelSpec(family="llama", layers=6, width=384, heads=6, context=256)
    model = build(spec.resolve(4096, pad_id=None, bos_id=None, eos_ids=()), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(4096, (2, 64))

    def train() -> None:
        model(tokens).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    train()
    parameters = list(model.named_parameters())
    found: dict[str, list[float]] = {"background": [], "until written": [], "foreground": [], "torch.save": []}
    with tempfile.TemporaryDirectory() as scratch:
        settings = CheckpointsConfig(keep_last=1)
        checkpoints = Checkpoints(Folder.at(Path(scratch) / "checkpoints"), settings)

        def save(step: int, wait: bool) -> None:
            weights = {f"weights.{name}": tensor for name, tensor in weight_tensors(model).items()}
            moments = optimizer_tensors(parameters, [optimizer])
            tensors = {**weights, **{f"optimizer.{label}": tensor for label, tensor in moments.items()}}
            twin = Twin(model)

            def write_model(path: Path, whole: Callable[[list[str]], Mapping[str, Tensor]]) -> None:
                values = whole(list(weights))
                filled = twin.filled({name.removeprefix("weights."): value for name, value in values.items()})
                assert isinstance(filled, Transformer)
                save_model(filled, path)

            checkpoints.save(step, Contents(tensors, {}, {}, {}, write_model), wait=wait)

        def plain() -> None:
            with (Path(scratch) / "plain.pt").open("wb") as stream:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, stream)
                os.fsync(stream.fileno())

        for number in range(options.rounds):
            began = time.perf_counter()
            found["background"].append(timed(lambda number=number: save(2 * number, False)))  # type: ignore[misc]
            checkpoints.wait()
            found["until written"].append(time.perf_counter() - began)
            train()
            found["foreground"].append(timed(lambda number=number: save(2 * number + 1, True)))  # type: ignore[misc]
            train()
            found["torch.save"].append(timed(plain))
            train()
    medians = {name: statistics.median(times) for name, times in found.items()}
    rows = [[name, round(1000 * medians[name], 1), round(1000 * min(found[name]), 1)] for name in found]
    emit_table(["checkpoint", "ms (median)", "ms (least)"], rows)
    if options.json:
        stands_still = medians["background"]
        print(
            json.dumps(
                {
                    "bench": "checkpoints",
                    "cores": os.cpu_count(),
                    "versions": {"torch": version("torch")},
                    "llmkit": medians,
                    "peers": {"torch.save": medians["torch.save"]},
                    "ratio": {"torch.save/stall": medians["torch.save"] / stands_still},
                }
            )
        )


if __name__ == "__main__":
    main()
