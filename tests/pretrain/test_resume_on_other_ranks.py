"""A training saved on four ranks goes on on two and on one: the same tokens, and the loss that one rank would have."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pretrain_samples import pretrain, tokens_input, write_tokens
from ranks import run_ranks

import llmkit.pretrain.stage
from llmkit.pretrain.batches import Batch
from llmkit.pretrain.stream import TrainingStream

STEPS, HALF = 10, 5
SETTINGS: dict[str, Any] = {
    "model": {"family": "llama", "layers": 2, "width": 16, "heads": 2, "mlp_width": 24},
    "sequence_length": 16,
    "batch_size": 8,
    "steps": STEPS,
    "log_every": 1,
    "precision": "fp32",
    "device": "cpu",
    "optimizer": {"name": "normuon", "lr": 0.01},
    "average": {},
    "checkpoints": {"every": HALF, "keep_last": 4},
}


class Recorded(TrainingStream):
    """Notes the tokens that each rank gets, by step."""

    directory = Path()

    def batches(self, step: int) -> list[Batch]:
        found = super().batches(step)
        rows = torch.cat([batch.input_ids for batch in found]).tolist()
        (self.directory / f"tokens-{step}-{self._part.index}.json").write_text(json.dumps(rows))
        return found


def train(directory: Path, data: Path, **settings: Any) -> None:
    stream = directory / "stream"
    stream.mkdir(parents=True, exist_ok=True)
    Recorded.directory = stream
    original = llmkit.pretrain.stage.TrainingStream
    llmkit.pretrain.stage.TrainingStream = Recorded  # type: ignore[misc]
    try:
        pretrain(directory, tokens_input(data), **{**SETTINGS, **settings})
    finally:
        llmkit.pretrain.stage.TrainingStream = original  # type: ignore[misc]


def _rank(rank: int, ranks: int, root: Path, runs: list[tuple[str, dict[str, int]]]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/meet-{ranks}", rank=rank, world_size=ranks)
    for name, parallel in runs:
        train(root / name, root / "data", parallel=parallel)
    dist.destroy_process_group()


def digests(directory: Path, steps: range) -> list[str]:
    """Digest of the token ids of each step, whoever read them."""
    found = []
    for step in steps:
        parts = sorted((directory / "stream").glob(f"tokens-{step}-*.json"), key=lambda path: path.name)
        rows = [row for part in parts for row in json.loads(part.read_text())]
        assert len(rows) == SETTINGS["batch_size"]
        found.append(hashlib.sha256(json.dumps(rows).encode()).hexdigest())
    return found


def losses(directory: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["split"] == "train"}


def cut_off(source: Path, target: Path) -> None:
    """What a training killed after half of its steps has left."""
    shutil.copytree(source, target)
    shutil.rmtree(target / "stream")
    shutil.rmtree(target / "model")
    shutil.rmtree(target / "checkpoints" / f"step-{STEPS:08d}")


@pytest.mark.timeout(600)
def test_saved_on_four_ranks_it_goes_on_on_two_and_on_one(tmp_path: Path) -> None:
    write_tokens(tmp_path / "data")
    train(tmp_path / "alone", tmp_path / "data")
    run_ranks(_rank, 4, 4, tmp_path, [("four", {"replicate": 2, "shard": 2})])
    trainer = tmp_path / "four" / "checkpoints" / f"step-{HALF:08d}" / "trainer"
    sizes = [file.stat().st_size for file in sorted(trainer.glob("*.safetensors"))]
    # No rank writes what another does, and none writes most of it.
    assert len(list(trainer.glob("optimizer-*.safetensors"))) == 4
    assert max(sizes) < 0.5 * sum(sizes)
    meshes = {"fsdp": {"shard": 2}, "tensor": {"tensor": 2}}
    for name in [*meshes, "one"]:
        cut_off(tmp_path / "four", tmp_path / name)
    run_ranks(_rank, 2, 2, tmp_path, list(meshes.items()))
    train(tmp_path / "one", tmp_path / "data")
    expected, tokens = losses(tmp_path / "alone"), digests(tmp_path / "alone", range(STEPS))
    assert digests(tmp_path / "four", range(STEPS)) == tokens
    for name in ("four", "one", *meshes):
        found = losses(tmp_path / name)
        assert found.keys() == expected.keys()
        assert max(abs(found[step] - expected[step]) for step in expected) < 1e-5, name
    for name in ("one", *meshes):
        assert digests(tmp_path / name, range(HALF, STEPS)) == tokens[HALF:]
        assert not list((tmp_path / name / "stream").glob("tokens-0-*"))
