"""Ranks that share products, sequences and weights train the model that one rank trains alone, by the real loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import Tensor, nn

from llmkit.model.initialization import build, initialize, outline
from llmkit.model.load import load_model
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer
from llmkit.pretrain.batches import Batch
from llmkit.pretrain.objective import LanguageModelling
from llmkit.store.stage import Context
from llmkit.train.config import TrainConfig
from llmkit.train.contract import Part, StatelessSource
from llmkit.train.loop import train
from llmkit.train.world import ALONE, open_world

VOCABULARY, LENGTH, ROWS, STEPS, SEED = 60, 16, 4, 20, 5
CASES: dict[int, list[tuple[str, dict[str, int], str]]] = {
    2: [
        ("llama", {"tensor": 2}, "adamw"),
        ("llama", {"context": 2}, "adamw"),
    ],
    4: [
        ("llama", {"tensor": 4}, "adamw"),
        ("llama", {"context": 4}, "adamw"),
        ("llama", {"shard": 2, "tensor": 2}, "normuon"),
        ("bert", {"context": 2, "tensor": 2}, "adamw"),
    ],
}


class SharedConfig(TrainConfig):
    stage: Literal["shared"] = "shared"


class Rows(StatelessSource):
    """Random tokens; every third is predicted."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def batches(self, step: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(VOCABULARY, (ROWS, LENGTH + 1), generator=generator)[self.part.rows(ROWS)]
        places = (torch.arange(LENGTH) % 3 == 0).repeat(len(tokens)).nonzero()[:, 0]
        return [Batch(tokens[:, :-1], tokens[:, 1:].flatten()[places], places)]


def architecture(family: str) -> Any:
    spec = ModelSpec(family=family, layers=1, width=16, heads=4, mlp_width=24, context=LENGTH, init_std=0.1)
    return spec.resolve(VOCABULARY, pad_id=None, bos_id=None, eos_ids=())


def run(directory: Path, family: str, parallel: dict[str, int], optimizer: str, alone: bool) -> list[float]:
    """Train; the loss of each step, on rank 0 or alone."""
    directory.mkdir(parents=True, exist_ok=True)
    config = SharedConfig.model_validate(
        {
            "batch_size": ROWS,
            "steps": STEPS,
            "log_every": 1,
            "precision": "fp32",
            "device": "cpu",
            "optimizer": {"name": optimizer, "lr": 3e-3},
            "parallel": {} if alone else parallel,
        }
    )
    world = ALONE if alone else open_world(config.parallel, "cpu")
    model = build(architecture(family), seed=SEED) if alone else outline(architecture(family))

    def draw(target: nn.Module, put: Callable[[Tensor, Tensor], object]) -> None:
        assert isinstance(target, Transformer)
        initialize(target, SEED, put=put)

    def save(trained: nn.Module, path: Path) -> None:
        assert isinstance(trained, Transformer)
        save_model(trained, path)

    train(
        model=model,
        objective=LanguageModelling(1e-3),
        source=Rows(world.part),
        config=config,
        context=Context(name="shared", seed=SEED, directory=directory, where="shared.yaml:1: stages.shared"),
        save=save,
        world=world,
        draw=None if alone else draw,
    )
    if not world.is_main:
        return []
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]


def on_each_rank(rank: int, folder: Path, ranks: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    for number, (family, parallel, optimizer) in enumerate(CASES[ranks]):
        shared, alone = folder / str(number), folder / f"{family}-{optimizer}"
        losses = run(shared, family, parallel, optimizer, False)
        if rank == 0:
            expected = folder / f"{alone.name}.json"
            if not expected.exists():
                expected.write_text(json.dumps(run(alone, family, {}, optimizer, True)))
            what = f"{family} by {optimizer} under {parallel}"
            worst = max(abs(a - b) for a, b in zip(losses, json.loads(expected.read_text()), strict=True))
            assert worst < 1e-5, f"losses of {what} differ by {worst}"
            compare(shared, alone, what)
        dist.barrier()
    dist.destroy_process_group()


def compare(shared: Path, alone: Path, what: str) -> None:
    """The saved models are the same, within the rounding of twenty steps."""
    ours, theirs = (dict(load_model(path / "model").named_parameters()) for path in (shared, alone))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        # Without positions between them and the scores, biases of keys have no effect, and AdamW scales up noise.
        if "key.bias" not in name:
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4, msg=f"{name} of {what}")


@pytest.mark.parametrize("ranks", CASES)
def test_ranks_train_the_model_that_one_trains(ranks: int, tmp_path: Path) -> None:
    run_ranks(on_each_rank, ranks, tmp_path, ranks)
