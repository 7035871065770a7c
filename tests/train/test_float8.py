"""Products of 8-bit numbers, whose arithmetic torch has on a CPU too, against float64 and a rounding by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_run import ToyConfig, ToyModel

from llmkit.errors import ConfigError
from llmkit.model.initialization import build
from llmkit.model.spec import ModelSpec
from llmkit.train.engine import prepare_engine
from llmkit.train.float8 import use_float8_products


def _nearest(values: np.ndarray, mantissa: int, lowest: int, largest: float) -> np.ndarray:
    """To the nearest number with so many bits of mantissa and exponents from `lowest`, halves to even."""
    exponents = np.maximum(np.floor(np.log2(np.maximum(np.abs(values), 1e-300))), lowest)
    unit = 2.0 ** (exponents - mantissa)
    return np.clip(np.round(values / unit) * unit, -largest, largest)


def _by_hand(x: torch.Tensor, mantissa: int, lowest: int, largest: float) -> np.ndarray:
    """Values after scaling by the largest magnitude and rounding to an 8-bit format."""
    exact = x.detach().double().numpy()
    scale = np.abs(exact).max() / largest
    return _nearest(exact / scale, mantissa, lowest, largest) * scale


@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_factors_rounded_by_hand(bias: bool) -> None:
    spec = ModelSpec(family="bert" if bias else "llama", layers=1, width=64, heads=2)
    model = build(spec.resolve(61, pad_id=0), seed=0)
    assert use_float8_products(model) == (6 if bias else 7)
    linear = model.blocks[0].mlp.up
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 8, 64, generator=generator).bfloat16().requires_grad_()
    upstream = torch.randn(4, 8, linear.out_features, generator=generator).bfloat16()
    found = linear(x)
    found.backward(upstream)
    # OCP formats: e4m3 has exponents from -6 and reaches 448, e5m2 from -14 and 57,344.
    rows, weight = _by_hand(x.flatten(0, 1), 3, -6, 448), _by_hand(linear.weight, 3, -6, 448)
    slope = _by_hand(upstream.flatten(0, 1), 2, -14, 57344)
    values = rows @ weight.T + (linear.bias.detach().double().numpy() if bias else 0)
    assert x.grad is not None
    for tensor, expected in (
        (found.flatten(0, 1), values),
        (x.grad.flatten(0, 1), slope @ weight),
        (linear.weight.grad, slope.T @ rows),
    ):
        # Sums are in float32, results in bfloat16.
        wide = tensor.detach().double().numpy()
        assert np.linalg.norm(wide - expected) < 0.004 * np.linalg.norm(expected)
    assert linear.weight.grad.dtype == torch.float32
    # And the formats themselves lose this much at most: half a unit of 3 bits, and of 2.
    exact = upstream.flatten(0, 1).double().t() @ x.detach().flatten(0, 1).double()
    assert (linear.weight.grad - exact).norm() < 0.12 * exact.norm()


def test_tokens_that_the_kernels_cannot_take_are_computed_as_ever() -> None:
    model = build(ModelSpec(family="llama", layers=1, width=64, heads=2).resolve(61, pad_id=0), seed=0)
    linear = model.blocks[0].mlp.up
    x = torch.randn(3, 5, 64)
    expected = linear(x)
    use_float8_products(model)
    assert torch.equal(linear(x), expected)


def test_widths_that_the_kernels_cannot_take_stay() -> None:
    model = build(ModelSpec(family="llama", layers=1, width=24, heads=2).resolve(61, pad_id=0), seed=0)
    assert use_float8_products(model) == 0


def test_names_of_parameters_stay_and_a_model_learns() -> None:
    model = build(ModelSpec(family="llama", layers=2, width=64, heads=2).resolve(61, pad_id=0), seed=0)
    names = list(model.state_dict())
    use_float8_products(model)
    assert list(model.state_dict()) == names
    input_ids = torch.randint(61, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(model(input_ids).flatten(0, 1).float(), input_ids.flatten())
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


def test_devices_without_such_products_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="float8"):
        prepare_engine(ToyConfig(precision="float8"), ToyModel(), tmp_path, where="a.yaml:1: stages.toy.precision")
