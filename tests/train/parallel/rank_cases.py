"""Trainings that are run alone and on many ranks: `run_cases(directory, cases)` on each of them.

The numbers of a training are those that `metrics.jsonl` and `model/` hold.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmkit.model.initialization import build, initialize, outline
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer
from llmkit.pretrain.batches import Batch, causal_batch, split_batch
from llmkit.pretrain.objective import LanguageModelling
from llmkit.store.files import write_json_atomic
from llmkit.store.stage import Context
from llmkit.train.config import TrainConfig
from llmkit.train.contract import Part, StatelessSource
from llmkit.train.loop import train
from llmkit.train.parallel.placement import training_world
from llmkit.train.parallel.whole import full_tensors

# 67 tokens and rows of 40 are not divided evenly by 4 ranks, nor is anything by 3.
VOCABULARY, ROWS, LENGTH = 67, 12, 16
SHAPE = {"family": "llama", "layers": 2, "width": 40, "heads": 4, "kv_heads": 2, "mlp_width": 56, "context": LENGTH}


@dataclass(frozen=True)
class Case:
    """A training, and the mesh that it is run on."""

    name: str
    ranks: int
    parallel: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


class CaseConfig(TrainConfig):
    stage: Literal["case"] = "case"


class Rows(StatelessSource):
    """Random rows, a function of the step alone."""

    def __init__(self, config: TrainConfig, part: Part) -> None:
        self.micro, self.part = config.micro_batch, part

    def batches(self, step: int) -> list[Batch]:
        rows = np.random.default_rng(step).integers(0, VOCABULARY, (ROWS, LENGTH + 1))
        return split_batch(causal_batch(rows[self.part.rows(ROWS)]), self.micro)


def save(model: nn.Module, path: Path) -> None:
    path.mkdir(parents=True)
    weights = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    save_file(weights, path / "model.safetensors")


def run_case(directory: Path, case: Case) -> None:
    """Train; with 20 steps and a line for each, unless the case says otherwise."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = {"steps": 20, "log_every": 1, "evaluate_every": 20, "precision": "fp32", "watchdog": None}
    optimizer = {"name": "adamw", "lr": 1e-2, **case.settings.get("optimizer", {})}
    config = CaseConfig.model_validate(
        {**settings, "batch_size": ROWS, "parallel": case.parallel, **case.settings, "optimizer": optimizer}
    )
    context = Context("case", 5, directory, where="case.yaml:1: stages.case")
    # Nothing is to be measured.
    engine = {"device": "cpu", "threads": 1, "precision": "fp32", "reason": "given", "matrix_rate": 1e9}
    if not dist.is_initialized() or dist.get_rank() == 0:
        write_json_atomic(directory / "engine.json", engine)
    world = training_world(config, context)
    architecture = ModelSpec.model_validate({**SHAPE, **case.model}).resolve(VOCABULARY, pad_id=0)
    sharded = world.sizes.shard > 1
    model = outline(architecture) if sharded else build(architecture, seed=3)
    objective = LanguageModelling()
    held_out = Rows(config, Part()).batches(1000)[:1]

    def draw(model: nn.Module, put: Any) -> None:
        assert isinstance(model, Transformer)
        initialize(model, 3, put=put)
        drawn = full_tensors(dict(model.named_parameters()), world)
        if drawn:
            torch.save(drawn, directory / "drawn.pt")

    def validation(model: nn.Module) -> dict[str, float]:
        outputs = [objective.loss(model, batch) for batch in held_out]
        return {"loss": sum(float(each.sum) for each in outputs) / sum(float(each.weight) for each in outputs)}

    train(
        model=model,
        objective=objective,
        source=Rows(config, world.part),
        config=config,
        context=context,
        save=save,
        validation=validation,
        world=world,
        draw=draw if sharded else None,
    )


def lines(directory: Path, split: str = "train") -> list[dict[str, Any]]:
    """What was logged."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


def weights(directory: Path) -> dict[str, Tensor]:
    """The finished model's."""
    return load_file(directory / "model" / "model.safetensors")


def _rank(rank: int, ranks: int, directory: Path, cases: list[Case]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=ranks)
    for case in cases:
        run_case(directory / case.name, case)
    dist.destroy_process_group()


def run_cases(directory: Path, ranks: int, cases: list[Case]) -> None:
    """Run cases on many ranks, all of them in one group."""
    run_ranks(partial(_rank, ranks=ranks, directory=directory, cases=cases), ranks)
