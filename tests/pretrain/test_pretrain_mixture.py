"""A whole training on a mixture, in phases."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from pretrain_samples import pretrain, write_tokens

PHASES = [{"steps": 2, "batch_size": 2, "sequence_length": 8}, {"tokens": 200, "batch_size": 4}]


def test_a_mixture_is_trained_on_in_phases_and_measured_by_source(tmp_path: Path) -> None:
    first, second = (
        replace(write_tokens(tmp_path / name), key=f"data.{number}.data") for number, name in enumerate("ab")
    )
    settings = {
        "data": [{"data": "a", "weight": 3.0}, {"data": "b", "weight": [[0, 1.0], [1, 1.0]]}],
        "sequence_length": 16,
        "micro_batch_size": 2,
        "batch_size": 8,
        "steps": 12,
        "log_every": 1,
        "phases": PHASES,
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"warmup_tokens": 400},
        "evaluate_batches": 2,
        "z_loss": 1e-3,
    }
    outcome = pretrain(tmp_path / "out", first, second, **settings)
    # Two steps of 2 x 8, four of 4 x 16 for the 200 tokens, six of 8 x 16.
    rows, tokens = 2 * 2 + 4 * 4 + 6 * 8, 2 * 16 + 4 * 64 + 6 * 128
    summary = outcome.summary
    assert summary["tokens"] == tokens
    assert [summary["sequences/a"], summary["sequences/b"]] == [rows * 3 // 4, rows // 4]
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["split"] == "train"]
    assert [line["tokens"] for line in steps] == [16, 32, 96, 160, 224, 288, *(288 + 128 * n for n in range(1, 7))]
    assert [line["lr"] for line in steps[:4]] == pytest.approx([1e-3 * seen / 400 for seen in (16, 32, 96, 160)])
    assert sum(line["share/a"] * size for line, size in zip(steps, [2] * 2 + [4] * 4 + [8] * 6, strict=True)) == 51
    assert all(line["z_loss"] > 0 for line in steps)
    last = lines[-1]
    assert last["split"] == "validation"
    assert last["loss"] == pytest.approx(0.75 * last["loss/a"] + 0.25 * last["loss/b"])
    # Both have 700 tokens for 2,100 bytes.
    assert last["bits_per_byte"] == pytest.approx(last["loss"] * 699 / (math.log(2) * 2100))
