"""`llmkit plan` on the shipped configs of pretraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmkit.cli.main import app

CONFIGS = Path(__file__).parents[2] / "configs"


def planned(name: str, *options: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["plan", "--config", str(CONFIGS / name), "--json", *options])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_small_model_on_another_device() -> None:
    found = planned("pretrain-12m.yaml", "--device", "h100")
    (stage,) = found["stages"]
    # Llama: 6 blocks of 4 x 384^2 and 3 x 384 x 1,024 and two norms, an embedding of 4,096, and a norm.
    assert stage["parameters"] == 4096 * 384 + 6 * (4 * 384**2 + 3 * 384 * 1024 + 2 * 384) + 384
    assert stage["tokens"] == 2000 * 16 * 256
    flops = stage["flops"] + sum(stage["extra_flops"].values())
    assert stage["seconds"] == pytest.approx(flops / (0.5 * 989e12))
    assert stage["joules"] == pytest.approx(700 * stage["seconds"])
    assert (stage["devices"], stage["fits"], stage["precision"]) == (1, True, "bf16")


def test_an_unknown_device_is_named() -> None:
    result = CliRunner().invoke(app, ["plan", "--config", str(CONFIGS / "pretrain-12m.yaml"), "--device", "h1000"])
    assert result.exit_code == 2
    assert "h1000" in result.output
