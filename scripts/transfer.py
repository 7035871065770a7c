"""Whether the best learning rate stays where it is when a model is made wider, with the spectral rule and without it.

    python scripts/transfer.py [--widths 32 128] [--optimizers adamw muon] [--steps 200] [--svg DIR] [--json]

One small model is trained at each width and at learning rates that are factors of two apart, on the bytes of Python's
own documentation: once with the initial weights and rates that every width has by default, and once under the rule
(`optimizer.base_width`, the smallest of the widths). Heads keep their width, batches and seeds are the same. What
counts is the loss over the last tenth of the steps, on text that comes only once.

A table is printed: the losses, the best rate as a parabola through the best three points has it, and what the best
rate of the smallest width costs at this one (`regret`, over the best loss of the sweep). With --svg the curves are
drawn. The last line with --json is the result for machines.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
from torch import Tensor

from llmkit.console import emit_table, say
from llmkit.model.initialization import build
from llmkit.model.spec import ModelSpec
from llmkit.report.svg import Curve, line_chart
from llmkit.train.losses import language_model_loss
from llmkit.train.optimizers.build import build_optimizers, set_learning_rate
from llmkit.train.optimizers.config import OptimizerConfig
from llmkit.train.optimizers.scaling import scale_initial_weights

LENGTH, BATCH, LAYERS, HEAD_WIDTH = 64, 16, 2, 16
INIT_STD = 0.1
"""Of the smallest width, at which 0.02 would be too small for matrices to learn anything at first."""


def read_tokens(steps: int) -> Tensor:
    """Sequences [steps, batch, length + 1] of bytes, none of them twice."""
    text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics)).encode()
    count, width = steps * BATCH, LENGTH + 1
    if count * width > len(text):
        raise SystemExit(f"{steps} steps need {count * width:,} bytes, and the text has {len(text):,}.")
    rows = torch.tensor(list(text[: len(text) // width * width])).view(-1, width)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    return rows[order].view(steps, BATCH, width)


def train(tokens: Tensor, width: int, optimizer: str, rate: float, base_width: int | None) -> float:
    """Loss over the last tenth of the steps; infinite where it is no number."""
    spec = ModelSpec(
        family="llama",
        layers=LAYERS,
        width=width,
        heads=width // HEAD_WIDTH,
        mlp_width=3 * width,
        context=LENGTH,
        init_std=INIT_STD,
    )
    model = build(spec.resolve(256, pad_id=None), seed=0)
    if base_width is not None:
        scale_initial_weights(model, base_width)
    config = OptimizerConfig.model_validate({"name": optimizer, "lr": rate, "base_width": base_width})
    optimizers = build_optimizers(model, config, torch.float32)
    steps, losses = len(tokens), []
    warmup = steps // 10
    for step, rows in enumerate(tokens):
        hidden = model.hidden(rows[:, :-1]).flatten(0, 1)
        found = language_model_loss(model.head, hidden, rows[:, 1:].flatten())  # type: ignore[arg-type]
        loss = found.sum / (BATCH * LENGTH)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        set_learning_rate(optimizers, rate * min((step + 1) / warmup, (steps - step) / (steps - warmup)))
        for each in optimizers:
            each.step()
            each.zero_grad()
        losses.append(float(loss.detach()))
    last = losses[-(steps // 10) :]
    mean = sum(last) / len(last)
    return mean if math.isfinite(mean) else math.inf


def optimum(rates: list[float], losses: list[float]) -> float:
    """The rate with the least loss, between the rates that were tried: by a parabola over their logarithms."""
    best = min(range(len(rates)), key=lambda index: losses[index])
    if not 0 < best < len(rates) - 1 or not all(map(math.isfinite, losses[best - 1 : best + 2])):
        return rates[best]
    left, middle, right = losses[best - 1 : best + 2]
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / bend if bend > 0 else 0.0
    return rates[best] * (rates[1] / rates[0]) ** shift


def sweep(tokens: Tensor, optimizer: str, widths: list[int], rates: list[float]) -> list[dict[str, Any]]:
    """The losses at every width and rate, without the rule and with it, and the best rate of each."""
    rows = []
    for width in widths:
        for base in (None, min(widths)):
            if base == width:
                # At the base width the rule changes nothing.
                losses = rows[-1]["losses"]
            else:
                losses = []
                for rate in rates:
                    losses.append(train(tokens, width, optimizer, rate, base))
                    rule = "the" if base else "no"
                    say(f"{optimizer}, width {width}, {rule} rule, rate {rate:.2g}: loss {losses[-1]:.3f}")
            best = optimum(rates, losses)
            first = rows[0]["losses"] if rows else losses
            regret = losses[first.index(min(first))] - min(losses)
            row = {"optimizer": optimizer, "width": width, "rule": base is not None, "losses": losses}
            rows.append({**row, "best": best, "regret": regret})
    return rows


def draw(rows: list[dict[str, Any]], rates: list[float], folder: Path) -> None:
    """One chart for each optimizer and rule."""
    folder.mkdir(parents=True, exist_ok=True)
    for optimizer in dict.fromkeys(row["optimizer"] for row in rows):
        for rule in (False, True):
            chosen = [row for row in rows if row["optimizer"] == optimizer and row["rule"] == rule]
            curves = [
                Curve(
                    f"width {row['width']} (best {row['best']:.2g})",
                    [(rate, loss) for rate, loss in zip(rates, row["losses"], strict=True) if loss < 4],
                    color,
                )
                for color, row in enumerate(chosen)
            ]
            title = f"{optimizer}, " + ("with the spectral rule" if rule else "the same rates at each width")
            name = f"transfer-{optimizer}-{'rule' if rule else 'plain'}.svg"
            chart = line_chart(curves, title=title, x_title="learning rate", y_title="loss", log_x=True)
            (folder / name).write_text(chart, encoding="utf-8")


def main() -> None:
    """Run the sweeps, print and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "muon"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lowest", type=int, default=-9, help="the lowest rate is 2 to this power")
    parser.add_argument("--highest", type=int, default=-4, help="the highest rate is 2 to this power")
    parser.add_argument("--svg", type=Path, help="folder for the charts")
    parser.add_argument("--json", action="store_true", help="print the result for machines as the last line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokens = read_tokens(options.steps)
    rates = [2.0**power for power in range(options.lowest, options.highest + 1)]
    rows = [row for name in options.optimizers for row in sweep(tokens, name, sorted(options.widths), rates)]
    table = [
        [
            row["optimizer"],
            row["width"],
            "spectral" if row["rule"] else "none",
            *(f"{loss:.3f}" for loss in row["losses"]),
            f"{row['best']:.2g}",
            f"{row['regret']:.3f}",
        ]
        for row in rows
    ]
    emit_table(["optimizer", "width", "rule", *(f"{rate:.2g}" for rate in rates), "best", "regret"], table)
    if options.svg is not None:
        draw(rows, rates, options.svg)
    if options.json:
        print(json.dumps({"transfer": rows, "rates": rates}))


if __name__ == "__main__":
    main()
