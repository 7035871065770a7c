"""The ablation that chose the default recipe of `pretrain`: what one changed setting at a time does to the loss.

    python scripts/bench/ablate.py --text wikipedia=articles.txt [--seeds 2] [--only rate,decay] [--runs DIR]

Every variant trains the same model on the same tokens with the default settings but for those it names, from the same
seeds; the table shows the loss on held-out text, the mean over corpora and seeds, and its difference from the
default's. A difference below the spread of the seeds is none. Everything is trained by `llmkit run`, below `--runs`:
interrupted and started again it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from trials import Trials, add_options, text_sources

from llmkit.console import emit_table, say

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "optimizer: muon, 5e-3": {"optimizer": {"name": "muon", "lr": 5e-3}},
    "optimizer: adamw, 1e-3": {"optimizer": {"name": "adamw", "lr": 1e-3}},
    "optimizer: adamw, 2e-3": {"optimizer": {"name": "adamw", "lr": 2e-3}},
    "optimizer: adamw, 4e-3": {"optimizer": {"name": "adamw", "lr": 4e-3}},
    "optimizer: lion, 3e-4": {"optimizer": {"name": "lion", "lr": 3e-4, "betas": [0.9, 0.99]}},
    "rate: halved": {"optimizer": {"lr": 2.5e-3}},
    "rate: doubled": {"optimizer": {"lr": 1e-2}},
    "schedule: cosine to 0": {"schedule": {"name": "cosine", "final_fraction": 0.0}},
    "schedule: linear to 0": {"schedule": {"name": "linear", "final_fraction": 0.0}},
    "schedule: wsd, last fifth": {"schedule": {"name": "wsd", "decay_fraction": 0.2, "final_fraction": 0.0}},
    "decay: none": {"optimizer": {"weight_decay": 0.0}},
    "decay: 0.3": {"optimizer": {"weight_decay": 0.3}},
    "betas: 0.9, 0.99": {"optimizer": {"betas": [0.9, 0.99]}},
    "momentum: 0.9": {"optimizer": {"momentum": 0.9}},
    "clip: none": {"clip_norm": None},
}


def main() -> None:
    """Train, print a table and, with --json, one line for machines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", help="kinds of variants beside the default, by the word before the colon")
    parser.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    options = parser.parse_args()
    kinds = None if options.only is None else options.only.split(",")
    chosen = {
        name: settings
        for name, settings in VARIANTS.items()
        if name == "default" or kinds is None or name.partition(":")[0] in kinds
    }
    if not options.text:
        parser.error("name a text to train on, with --text")
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.runs or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        losses: dict[str, list[float]] = {name: [] for name in chosen}
        for corpus, source in text_sources(options, folder).items():
            trials = Trials(corpus, source, options, folder)
            for seed in range(options.seeds):
                stages = {_key(name): {"steps": options.steps, **settings} for name, settings in chosen.items()}
                outcomes = trials.run(seed, stages)
                for name in chosen:
                    losses[name].append(outcomes[_key(name)].loss)
                say(f"{corpus}: seed {seed} done")
    means = {name: statistics.mean(found) for name, found in losses.items()}
    rows = [
        [name, *(f"{loss:.4f}" for loss in losses[name]), f"{mean:.4f}", f"{mean - means['default']:+.4f}"]
        for name, mean in sorted(means.items(), key=lambda pair: pair[1])
    ]
    runs = [f"{number + 1}" for number in range(len(losses["default"]))]
    emit_table(("variant", *runs, "mean", "difference"), rows)
    if options.json:
        found = {"bench": "ablate", "cores": torch.get_num_threads(), "versions": {"torch": version("torch")}}
        print(json.dumps({**found, "llmkit": losses, "peers": {}, "ratio": {}}))


def _key(name: str) -> str:
    """The name of a variant's stage."""
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")


if __name__ == "__main__":
    main()
