"""A training small enough to be run many times: `python toy_run.py DIRECTORY [key=value ...]`.

It has what makes exact resume hard: dropout, tied weights, a buffer, a source that draws from every global generator
and keeps a state, and a model file that holds only a part of the model.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from llmkit.store.stage import Context
from llmkit.train.config import TrainConfig
from llmkit.train.contract import LossOutput
from llmkit.train.loop import TrainResult, train

VOCABULARY, WIDTH = 23, 16


class ToyConfig(TrainConfig):
    stage: Literal["toy"] = "toy"


class ToyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 3 * WIDTH)
        self.down = nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(self.down(F.gelu(self.up(self.norm(x)))), 0.1, self.training)


class ToyModel(nn.Module):
    calls: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.token = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(ToyBlock() for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.token.weight
        self.value = nn.Linear(WIDTH, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            self.calls += 1
        x = self.token(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x), self.value(x)[..., 0]


class ToyObjective:
    def loss(self, model: nn.Module, batch: Tensor) -> LossOutput:
        logits, values = model(batch[:, :-1])
        targets = batch[:, 1:].reshape(-1)
        total = F.cross_entropy(logits.float().flatten(0, 1), targets, reduction="sum") + values.float().square().sum()
        hits = (logits.detach().argmax(-1).flatten() == targets).sum()
        return LossOutput(total, targets.numel(), {"accuracy": (hits, targets.numel())}, targets.numel())


class ToySource:
    """Rows that the source remembers and changes a little at each step, with draws from all three generators."""

    def __init__(self, batch_size: int, micro_batch_size: int) -> None:
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.rows = torch.arange(batch_size * 9).reshape(batch_size, 9) % VOCABULARY
        self.cursor = 0

    def batches(self, step: int) -> Sequence[Tensor]:
        self.cursor += random.randrange(5)
        row, column = int(torch.randint(self.batch_size, ())), int(np.random.randint(9))  # noqa: NPY002
        self.rows[row, column] = (self.cursor + step) % VOCABULARY
        return self.rows.split(self.micro_batch_size)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.cursor = state["rows"].clone(), state["cursor"]


def save_toy(model: ToyModel, path: Path) -> None:
    path.mkdir(parents=True)
    save_file({"token": model.token.weight.detach().bfloat16()}, path / "part.safetensors")
    everything = {name: value.detach() for name, value in model.named_parameters()}
    save_file({**everything, "calls": model.calls}, path / "model.safetensors")


def toy_validation(model: nn.Module) -> dict[str, float]:
    assert not model.training
    draws = torch.randint(VOCABULARY, (4, 9))
    output = ToyObjective().loss(model, draws)
    return {"loss": float(output.sum) / float(output.weight)}


def run_toy(directory: Path, **settings: Any) -> TrainResult:
    directory.mkdir(parents=True, exist_ok=True)
    config = ToyConfig.model_validate({"batch_size": 8, "steps": 40, "checkpoints": {"every": 5}, **settings})
    model = ToyModel()
    return train(
        model=model,
        objective=ToyObjective(),
        source=ToySource(config.batch_size, config.micro_batch),
        config=config,
        context=Context(name="toy", seed=7, directory=directory, where="toy.yaml:1: stages.toy"),
        save=save_toy,
        validation=toy_validation,
        flops_per_token=6.0 * sum(p.numel() for p in model.parameters()),
    )


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    settings = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in arguments[1:])}
    run_toy(Path(arguments[0]), **settings)


if __name__ == "__main__":
    main(sys.argv[1:])
