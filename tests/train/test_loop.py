from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy_run import ToyConfig, ToyModel, run_toy

from llmkit.store.stage import Context
from llmkit.train.contract import LossOutput, StatelessSource
from llmkit.train.loop import DivergedError, TrainResult, train


class Rows(StatelessSource):
    """Fixed rows of different lengths: equal parts of the batch have different weights."""

    def __init__(self, micro_batch_size: int) -> None:
        self.size = micro_batch_size
        generator = torch.Generator().manual_seed(5)
        self.inputs = torch.randn(8, 6, 4, generator=generator)
        self.mask = torch.arange(6) < torch.tensor([1, 6, 2, 5, 3, 3, 6, 1])[:, None]

    def batches(self, step: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.inputs.split(self.size), self.mask.split(self.size), strict=True))


class Squares:
    """Mean over unmasked positions of (w . x - 1)^2, whose gradient has a closed form."""

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> LossOutput:
        inputs, mask = batch
        errors = (model(inputs)[..., 0] - 1) * mask
        return LossOutput(errors.square().sum(), mask.sum(), {"positive": ((errors > 0).sum(), mask.sum())}, 48)


def run(directory: Path, model: nn.Module, objective: Any, source: Any, **settings: Any) -> TrainResult:
    directory.mkdir(exist_ok=True)
    values = {"precision": "fp32", "steps": 1, "clip_norm": None, "log_every": 1, **settings}
    return train(
        model=model,
        objective=objective,
        source=source,
        config=ToyConfig.model_validate(values),
        context=Context(name="toy", seed=1, directory=directory, where="a.yaml:3: stages.toy"),
        save=lambda model, path: path.mkdir(),
    )


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 8])
def test_gradient_loss_and_metrics_are_those_of_the_whole_batch(tmp_path: Path, micro_batch_size: int) -> None:
    model = nn.Linear(4, 1, bias=False)
    start = torch.tensor([[0.5, -1.0, 2.0, 0.25]])
    model.weight.data.copy_(start)
    source = Rows(micro_batch_size)
    run(tmp_path, model, Squares(), source, batch_size=8, micro_batch_size=micro_batch_size)
    x, mask, w = source.inputs.double(), source.mask.double(), start[0].double()
    errors = (x @ w - 1) * mask
    gradient = 2 * (errors[..., None] * x).sum((0, 1)) / mask.sum()
    (line,) = lines(tmp_path)
    assert line["loss"] == pytest.approx((errors**2).sum().item() / 27, rel=1e-6)
    assert line["positive"] == pytest.approx((errors > 0).sum().item() / 27)
    assert line["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-6)
    assert line["tokens"] == 48 * 8 // micro_batch_size


def test_clipping_scales_the_gradient_to_the_norm(tmp_path: Path) -> None:
    """Seen through an optimizer that copies the gradient: AdamW's first moment after one step is 0.1 x gradient."""
    from safetensors.torch import load_file

    moments = {}
    for clip in (None, 0.5, 1e6):
        model = nn.Linear(4, 1, bias=False)
        model.weight.data.copy_(torch.tensor([[0.5, -1.0, 2.0, 0.25]]))
        run(tmp_path / str(clip), model, Squares(), Rows(8), batch_size=8, clip_norm=clip)
        stored = load_file(tmp_path / str(clip) / "checkpoints/step-00000001/trainer/optimizer-00000.safetensors")
        moments[clip] = stored["exp_avg:weight"].double()
    norm = moments[None].norm()
    assert norm > 0.05
    torch.testing.assert_close(moments[0.5], moments[None] * (0.05 / norm), rtol=1e-5, atol=0)
    torch.testing.assert_close(moments[1e6], moments[None], rtol=0, atol=0)


class Poisoned(Squares):
    def __init__(self, step: int, value: float) -> None:
        self.calls, self.step, self.value = 0, step, value

    def loss(self, model: nn.Module, batch: Any) -> LossOutput:
        self.calls += 1
        output = super().loss(model, batch)
        return output._replace(sum=output.sum * self.value) if self.calls == self.step else output


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_named_and_changes_nothing(tmp_path: Path, value: float) -> None:
    model = nn.Linear(4, 1)
    with pytest.raises(DivergedError, match=r"step 4 is not finite.*in `weight`") as raised:
        run(
            tmp_path,
            model,
            Poisoned(4, value),
            Rows(8),
            batch_size=8,
            steps=9,
            checkpoints={"every": 3},
            spikes={"skips": 0},
        )
    assert raised.value.where == "a.yaml:3: stages.toy"
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


class Nothing(Squares):
    def loss(self, model: nn.Module, batch: Any) -> LossOutput:
        return super().loss(model, (batch[0], batch[1] & False))


def test_a_batch_in_which_nothing_counts_is_named(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="step 1 has nothing to learn from"):
        run(tmp_path, nn.Linear(4, 1), Nothing(), Rows(8), batch_size=8)


def test_the_loss_of_a_line_is_the_average_since_the_line_before(tmp_path: Path) -> None:
    run(tmp_path / "each", nn.Linear(4, 1, bias=False), Squares(), Rows(8), batch_size=8, steps=7, log_every=1)
    each = [line["loss"] for line in lines(tmp_path / "each")]
    assert [line["step"] for line in lines(tmp_path / "each")] == [1, 2, 3, 4, 5, 6, 7]
    # Same weights at the start of both runs.
    torch.manual_seed(0)
    first, second = nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False)
    second.load_state_dict(first.state_dict())
    run(tmp_path / "a", first, Squares(), Rows(8), batch_size=8, steps=7, log_every=1)
    run(tmp_path / "b", second, Squares(), Rows(8), batch_size=8, steps=7, log_every=3)
    each = [line["loss"] for line in lines(tmp_path / "a")]
    averaged = lines(tmp_path / "b")
    assert [line["step"] for line in averaged] == [3, 6, 7]
    assert [line["loss"] for line in averaged] == pytest.approx([sum(each[:3]) / 3, sum(each[3:6]) / 3, each[6]])


def test_learning_rates_are_those_of_the_schedule(tmp_path: Path) -> None:
    schedule = {"name": "linear", "warmup_steps": 2, "final_fraction": 0.0}
    run(tmp_path, nn.Linear(4, 1), Squares(), Rows(8), batch_size=8, steps=4, schedule=schedule, optimizer={"lr": 0.4})
    assert [line["lr"] for line in lines(tmp_path)] == pytest.approx([0.2, 0.4, 0.2, 0.0])


def test_evaluations_come_at_their_interval_and_at_the_end(tmp_path: Path) -> None:
    result = run_toy(tmp_path, steps=7, evaluate_every=3)
    found = [line for line in lines(tmp_path) if line["split"] == "validation"]
    assert [line["step"] for line in found] == [3, 6, 7]
    assert result.summary["validation_loss"] == found[-1]["loss"]
    assert result.summary["tokens"] == 7 * 8 * 8
    parameters = 23 * 16 + 2 * (2 * 16 + 16 * 48 + 48 + 48 * 16 + 16) + 17
    assert result.summary["flops"] == 6.0 * parameters * 7 * 64


def test_compiled_and_plain_training_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The graph is captured and differentiated as for real; generating C++ from it would take half a minute.
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    settings: dict[str, Any] = {"steps": 3, "precision": "fp32", "log_every": 1}
    results = [run_toy(tmp_path / str(flag), compile=flag, **settings) for flag in (False, True)]
    assert "compiled in" in capsys.readouterr().err
    # Dropout draws other numbers in compiled code: validation, which has none, is compared after one step's noise.
    losses = [result.summary["validation_loss"] for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_where_compiling_fails_training_goes_on_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.train import step

    def breaks(model: nn.Module) -> list[nn.Module]:
        def fail(*arguments: Any) -> None:
            torch.rand(())
            raise RuntimeError("no C++ compiler\nlong log")

        model._compiled_call_impl = fail
        return [model]

    run_toy(tmp_path / "plain", steps=3)
    monkeypatch.setattr(step, "compile_blocks", breaks)
    run_toy(tmp_path / "broken", steps=3, compile=True)
    assert "goes on without it (no C++ compiler)" in capsys.readouterr().err
    plain, broken = (tmp_path / name / "model" / "part.safetensors" for name in ("plain", "broken"))
    assert plain.read_bytes() == broken.read_bytes()


def test_the_model_learns_what_can_be_learnt(tmp_path: Path) -> None:
    """Rows that do not change: the loss of a model that knows them by heart is near 0."""

    class Fixed(StatelessSource):
        def batches(self, step: int) -> list[Tensor]:
            return [torch.arange(9 * 8).reshape(8, 9) % 23]

    class Plain:
        def loss(self, model: nn.Module, batch: Tensor) -> LossOutput:
            logits, _ = model(batch[:, :-1])
            total = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
            return LossOutput(total, 64)

    for name in ("adamw", "muon"):
        optimizer = {"name": name, "lr": 0.02}
        result = run(tmp_path / name, ToyModel(), Plain(), Fixed(), steps=150, clip_norm=1.0, optimizer=optimizer)
        assert result.summary["train_loss"] < 0.1
