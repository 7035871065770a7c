"""Tokens that the default recipe of `pretrain` needs to reach the loss of a tuned AdamW with a cosine schedule.

    python scripts/bench/tokens_to_loss.py [--text shakespeare=input.txt] [--seeds 3] [--runs DIR] [--svg DIR] [--json]

On Python's own documentation, and on every text named, one model is trained from several seeds:

- AdamW with a cosine down to zero: its learning rate is the best of those of `--rates` on the first seed.
- The default recipe, which is what a `pretrain` stage does when its YAML says neither `optimizer` nor `schedule`: whole
  runs with a smaller budget each, the shares `--budgets` of AdamW's tokens.

Model, batches, tokens and clipping are the same for both. A recipe's loss between two budgets is interpolated in the
logarithm of the budget; outside of them nothing is: a share is then only known to be below the smallest budget or above
the largest. Ratios (`adamw/...`) are AdamW's tokens over the recipe's, the mean share of the seeds counting.

Everything is trained by `llmkit run`, below `--runs`: interrupted and started again it goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from trials import Trials, add_options, text_sources

from llmkit.console import emit_table, say
from llmkit.report.svg import Curve, line_chart


class Contest(Trials):
    """AdamW and the default recipe on one corpus."""

    def adamw(self, rate: float) -> dict[str, Any]:
        """The peer at a learning rate."""
        return {
            "steps": self.options.steps,
            "optimizer": {"name": "adamw", "lr": rate, "betas": [0.9, 0.95], "weight_decay": 0.1},
            "schedule": {"name": "cosine", "final_fraction": 0.0},
        }

    def measure(self) -> dict[str, Any]:
        """Tune AdamW, run both with every seed, and compare."""
        options = self.options
        rates = {f"adamw-{number}": rate for number, rate in enumerate(options.rates)}
        swept = self.run(0, {name: self.adamw(rate) for name, rate in rates.items()})
        best = min(swept, key=lambda name: swept[name].loss)
        say(f"{self.name}: AdamW is best at a learning rate of {rates[best]:g}: {swept[best].loss:.4f}")
        recipe = {f"default-{round(100 * share)}": share for share in options.budgets}
        seeds = []
        for seed in range(options.seeds):
            stages = {best: self.adamw(rates[best])}
            stages |= {name: {"steps": round(share * options.steps)} for name, share in recipe.items()}
            outcomes = self.run(seed, stages)
            losses = {share: outcomes[name].loss for name, share in recipe.items()}
            seeds.append(
                {
                    "adamw": outcomes[best].loss,
                    "default": losses,
                    "share": needed_share(losses, outcomes[best].loss),
                    "curves": {name: outcome.curve for name, outcome in outcomes.items()},
                }
            )
            say(f"{self.name}: seed {seed} done")
        return {
            "rates": {f"{rates[name]:g}": outcome.loss for name, outcome in swept.items()},
            "rate": rates[best],
            "peer": best,
            "seeds": seeds,
        }


def needed_share(losses: Mapping[float, float], wanted: float) -> float:
    """The share of the tokens at which a loss is reached, between the budgets tried; the nearest one outside of them.

    Returns:
        the smallest budget where that is enough, infinity where the largest is not.
    """
    shares = sorted(losses)
    if losses[shares[0]] <= wanted:
        return shares[0]
    for low, high in itertools.pairwise(shares):
        if losses[high] <= wanted:
            part = (losses[low] - wanted) / (losses[low] - losses[high])
            return math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
    return math.inf


def draw(path: Path, name: str, result: Mapping[str, Any]) -> None:
    """The curves of all seeds: validation loss over tokens."""
    curves = []
    for number, seed in enumerate(result["seeds"]):
        for color, (stage, points) in enumerate(seed["curves"].items()):
            label = f"default recipe, {stage.removeprefix('default-')}% of the tokens" if color else "AdamW, cosine"
            curves.append(Curve(label if number == 0 else None, points, color))
    chart = line_chart(curves, title=f"{name}: validation loss", x_title="tokens", y_title="nats a token")
    path.write_text(chart, encoding="utf-8")


def table(found: Mapping[str, Mapping[str, Any]]) -> list[Sequence[Any]]:
    """A row for each corpus and seed."""
    rows: list[Sequence[Any]] = []
    for name, result in found.items():
        for number, seed in enumerate(result["seeds"]):
            losses = ", ".join(f"{loss:.4f} at {share:.0%}" for share, loss in seed["default"].items())
            rows.append([name, number, f"{seed['adamw']:.4f} ({result['rate']:g})", losses, f"{seed['share']:.0%}"])
    return rows


def main() -> None:
    """Train, print a table, draw, and, with --json, one line for machines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--only", help="leave out the corpora that are not named so")
    parser.add_argument("--steps", type=int, default=256, help="steps of AdamW")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3], help="AdamW's, to choose from"
    )
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.4, 0.5, 0.6], help="shares of AdamW's tokens")
    parser.add_argument("--svg", type=Path, help="folder for the curves, a file for each corpus")
    parser.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.runs or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        sources: dict[str, dict[str, Any]] = {
            "python-docs": {"kind": "python-docs", "parts": ["reference", "docstrings"]}
        }
        sources |= text_sources(options, folder)
        chosen = {name: source for name, source in sources.items() if options.only in (None, name)}
        found = {name: Contest(name, source, options, folder).measure() for name, source in chosen.items()}
    if options.svg:
        options.svg.mkdir(parents=True, exist_ok=True)
        for name, result in found.items():
            draw(options.svg / f"{name}.svg", name, result)
    emit_table(("corpus", "seed", "AdamW (rate)", "default recipe", "tokens needed"), table(found))
    if options.json:
        print(json.dumps(as_json(options, found)))


def as_json(options: argparse.Namespace, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Everything measured, for machines."""
    ours = {
        name: [{"loss": seed["default"], "share": seed["share"]} for seed in r["seeds"]] for name, r in found.items()
    }
    theirs = {name: {"rates": r["rates"], "loss": [seed["adamw"] for seed in r["seeds"]]} for name, r in found.items()}
    shares = {name: statistics.mean(seed["share"] for seed in result["seeds"]) for name, result in found.items()}
    return {
        "bench": "tokens_to_loss",
        "cores": torch.get_num_threads(),
        "versions": {"torch": version("torch")},
        "settings": {key: getattr(options, key) for key in ("layers", "width", "vocab", "batch", "length", "steps")},
        "llmkit": ours,
        "peers": {"adamw": theirs},
        "ratio": {f"adamw/{name}": 1 / share for name, share in shares.items()},
    }


if __name__ == "__main__":
    main()
