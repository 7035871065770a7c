from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toy_run import ToyConfig, ToyModel

from llmkit.errors import ConfigError
from llmkit.train import engine as engine_module
from llmkit.train.engine import Engine, choose_precision, matrix_rate, prepare_engine


def test_the_choice_is_written_down_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_engine(ToyConfig(), ToyModel(), tmp_path)
    assert json.loads((tmp_path / "engine.json").read_text())["precision"] == first.precision

    def another(*arguments: object) -> tuple[str, str]:
        raise AssertionError("measured a second time")

    monkeypatch.setattr(engine_module, "choose_precision", another)
    assert prepare_engine(ToyConfig(), ToyModel(), tmp_path) == first


@pytest.mark.parametrize(("speedup", "expected"), [(3.0, "bf16"), (1.0, "fp32"), (0.3, "fp32")])
def test_bf16_is_chosen_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, speedup: float, expected: str
) -> None:
    calls = iter([speedup, 1.0] * 8)
    monkeypatch.setattr(engine_module, "_timed", lambda work, device, clock: next(calls))
    precision, reason = choose_precision(ToyModel(), "cpu")
    assert precision == expected
    assert f"{speedup:.1f} times" in reason


def test_what_is_written_in_the_config_is_not_measured(tmp_path: Path) -> None:
    engine = prepare_engine(ToyConfig(precision="bf16"), ToyModel(), tmp_path)
    assert (engine.precision, engine.reason) == ("bf16", "as configured")
    assert engine.matrix_rate > 0


@pytest.mark.parametrize(
    ("small", "large", "rate"), [(0.001, 0.04, 2 * 1024**3 / 0.04), (0.05, 0.04, 2 * 256**3 / 0.05)]
)
def test_the_matrix_rate_is_that_of_a_large_product_or_of_a_small_one_that_is_slow(
    small: float, large: float, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {256: small, 1024: large}

    def timed(work: Callable[[], torch.Tensor], device: str, clock: object) -> float:
        return seconds[len(work())]

    monkeypatch.setattr(engine_module, "_timed", timed)
    assert matrix_rate("cpu", torch.float32) == pytest.approx(rate)


def test_settings_of_torch_return_after_the_run() -> None:
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    with Engine("cpu", 2, "fp32", "", 1.0).active():
        assert torch.get_num_threads() == 2
        assert torch.are_deterministic_algorithms_enabled()
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_autocast_computes_products_in_bf16_and_keeps_weights() -> None:
    layer = torch.nn.Linear(4, 4)
    with Engine("cpu", 1, "bf16", "", 1.0).autocast():
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32


def test_a_missing_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        prepare_engine(ToyConfig(device="cuda"), ToyModel(), tmp_path, where="a.yaml:1: stages.toy.device")
