"""Quantized linear maps: held against the formats' definitions in float64, against dense products and bitsandbytes."""

from __future__ import annotations

from typing import Any

import bitsandbytes.functional as reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llmkit.errors import ConfigError, ModelError
from llmkit.model.layers import Linear
from llmkit.model.quantization.config import BITS, quantization_of
from llmkit.model.quantization.int4 import Int4Linear
from llmkit.model.quantization.int8 import Int8Embedding, Int8Linear
from llmkit.model.quantization.join import join
from llmkit.model.quantization.nf4 import NF4Linear

KINDS: list[Any] = [Int8Linear, Int4Linear, NF4Linear]
SHAPES = [(64, 128), (96, 64), (33, 50), (7, 130), (1, 32), (600, 32), (200, 96)]


def _weight(outputs: int, inputs: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return (torch.randn(outputs, inputs) * 0.05).to(dtype)


# NF4's levels: means of neighbouring quantiles of the normal law between the offset and one half, 8 above zero and 7
# below with zero shared, scaled to end at -1 and 1 (Dettmers et al. 2023, appendix E, and its released code).
def _levels() -> Tensor:
    offset = 0.9677083
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    above = normal.icdf(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    below = -normal.icdf(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat((below, torch.zeros(1, dtype=torch.float64), above)).sort().values
    return levels / levels.max()


def _int8_values(weight: Tensor) -> Tensor:
    exact = weight.double()
    scale = (exact.abs().amax(1) / 127).to(weight.dtype).double()[:, None]
    return (exact / scale).round().clamp(-127, 127) * scale


def _nf4_values(weight: Tensor) -> Tensor:
    flat = weight.double().flatten()
    padded = torch.cat((flat, flat.new_zeros(-len(flat) % 64))).view(-1, 64)
    peak = padded.abs().amax(1, keepdim=True)
    levels = _levels()
    nearest = ((padded / peak.clamp_min(1e-30))[..., None] - levels).abs().argmin(-1)
    return (levels[nearest] * peak.to(weight.dtype).double()).flatten()[: len(flat)].view(weight.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_rounding_to_127ths_of_the_row(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = _weight(*shape, dtype)
    dense = Int8Linear(weight).dense_weight()
    assert dense.dtype == dtype
    torch.testing.assert_close(dense, _int8_values(weight).to(dtype), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_int4_is_within_half_a_step_of_each_group(shape: tuple[int, int]) -> None:
    weight = _weight(*shape)
    dense = Int4Linear(weight).dense_weight().double()
    filled = nn.functional.pad(weight.double(), (0, -shape[1] % 32)).view(shape[0], -1, 32)
    step = (filled.amax(2) - filled.amin(2)) / 15
    # Scale and offset (8 steps from the lowest weight) are rounded to bfloat16, and so is each weight in the end.
    bound = step / 2 + (filled.amin(2).abs() + 16 * step + filled.abs().amax(2)) * 2.0**-8
    error = nn.functional.pad((dense - weight.double()).abs(), (0, -shape[1] % 32)).view(filled.shape).amax(2)
    assert (error <= bound).all()


def test_int4_gives_back_weights_on_its_own_grid() -> None:
    codes = torch.randint(0, 16, (64, 96))
    codes.view(64, 3, 32)[:, :, 0], codes.view(64, 3, 32)[:, :, 1] = 0, 15
    scale = torch.randint(1, 5, (64, 3)) / 64
    weight = ((codes.view(64, 3, 32) - 8) * scale[:, :, None]).view(64, 96).bfloat16()
    assert torch.equal(Int4Linear(weight).dense_weight(), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_is_the_nearest_quantile(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = _weight(*shape, dtype)
    expected = _nf4_values(weight)
    dense = NF4Linear(weight).dense_weight().double()
    # A weight halfway between two levels may take either; all others agree.
    close = (dense - expected).abs() <= 2.0 ** (-8 if dtype == torch.bfloat16 else -20) * expected.abs() + 1e-12
    assert close.float().mean() > 0.995
    assert (dense - weight.double()).abs().max() <= 0.5 * _levels().diff().max() * weight.double().abs().max() * 1.01


def test_nf4_codes_and_levels_are_bitsandbytes() -> None:
    weight = _weight(96, 192)
    codes, state = reference.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    mine = NF4Linear(weight)
    assert torch.equal(mine.codes, codes)
    torch.testing.assert_close(mine.scale.float(), state.absmax, rtol=2.0**-8, atol=0)
    torch.testing.assert_close(state.code.double(), _levels(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@given(scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4]), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=12)
def test_zeros_and_lone_large_weights_stay_finite(kind: Any, scale: float, seed: int) -> None:
    weight = torch.zeros(32, 64)
    generator = torch.Generator().manual_seed(seed)
    weight[torch.randint(32, (5,), generator=generator), torch.randint(64, (5,), generator=generator)] = scale
    dense = kind(weight.bfloat16()).dense_weight().float()
    torch.testing.assert_close(dense, weight, rtol=2.0**-7, atol=0)


@pytest.mark.parametrize("rows", [1, 2, 5, 12, 13, 33, 200])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_dense_weight(kind: Any, shape: tuple[int, int], rows: int) -> None:
    bias = nn.Parameter(torch.randn(shape[0]).bfloat16())
    linear = kind(_weight(*shape), bias)
    x = torch.randn(rows, shape[1]).bfloat16()
    expected = x.double() @ linear.dense_weight().double().t() + bias.double()
    with torch.no_grad():
        found = linear(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2.0**-6 * expected.abs().max().item())
    with torch.no_grad():
        # Leading dimensions and strides do not matter.
        odd = x.t().contiguous().t().view(1, rows, -1)
        torch.testing.assert_close(linear(odd)[0], found, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [Int8Linear, NF4Linear])
def test_products_in_float32_are_exact(kind: Any) -> None:
    linear = kind(_weight(48, 80, torch.float32))
    x = torch.randn(3, 4, 80)
    expected = x.double() @ linear.dense_weight().double().t()
    torch.testing.assert_close(linear(x).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_dense_weight(kind: Any, dtype: torch.dtype) -> None:
    bias = nn.Parameter(torch.randn(64, dtype=dtype))
    linear = kind(_weight(64, 96, dtype), bias)
    x = torch.randn(2, 9, 96, dtype=dtype, requires_grad=True)
    out = linear(x)
    grad = torch.randn_like(out)
    out.backward(grad)
    assert x.grad is not None
    assert bias.grad is not None
    expected = grad.double() @ linear.dense_weight().double()
    tolerance = 2.0**-6 if dtype == torch.bfloat16 or kind is Int4Linear else 1e-5
    torch.testing.assert_close(x.grad.double(), expected, rtol=0, atol=tolerance * expected.abs().max().item())
    torch.testing.assert_close(bias.grad, grad.sum((0, 1)), rtol=2.0**-6, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_dense_is_kept_for_the_backward_pass(kind: Any) -> None:
    linear = kind(_weight(64, 96))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        linear(torch.randn(256, 96, dtype=torch.bfloat16, requires_grad=True))
    assert not any(tensor.shape[-2:] in ((64, 96), (96, 64)) for tensor in kept)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_decides_the_dtype_of_products(kind: Any) -> None:
    linear = kind(_weight(64, 64, torch.float32))
    x = torch.randn(5, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = linear(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    expected = linear.dense_weight().double().sum(0).expand(5, -1)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), expected, rtol=0, atol=2.0**-6 * expected.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_not_cast_and_come_back_from_a_state(kind: Any) -> None:
    weight = _weight(64, 128)
    linear = kind(weight)
    before = {name: tensor.clone() for name, tensor in linear.state_dict().items()}
    with torch.no_grad():
        linear(torch.randn(1, 128).bfloat16())
    state = linear.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert linear.to(torch.float32).codes.dtype == before["codes"].dtype
    torch.testing.assert_close(linear.dense_weight(), kind(weight).dense_weight().float(), rtol=2.0**-7, atol=0)
    other = kind(torch.zeros_like(weight))
    other.load_state_dict(before)
    assert torch.equal(other.dense_weight(), kind(weight).dense_weight())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_weight_gives_the_same_codes(kind: Any) -> None:
    weight = _weight(96, 64)
    assert all(torch.equal(one, two) for one, two in zip(kind(weight).buffers(), kind(weight).buffers(), strict=True))


def test_bits_a_weight_are_as_announced() -> None:
    weight = _weight(256, 512)
    for name, kind in (("int8", Int8Linear), ("int4", Int4Linear), ("nf4", NF4Linear)):
        scales = 16 / 512 if name == "int8" else 0.0
        bits = sum(8 * buffer.numel() * buffer.element_size() for buffer in kind(weight).buffers()) / weight.numel()
        assert bits == BITS[name] + scales  # type: ignore[index]


def test_an_int8_embedding_reads_the_rows_of_the_output_map() -> None:
    output = Int8Linear(_weight(40, 16))
    ids = torch.tensor([[3, 39], [0, 3]])
    embedding = Int8Embedding(output)
    assert torch.equal(embedding(ids), output.dense_weight()[ids])
    assert not list(embedding.buffers())
    assert embedding.dtype == torch.bfloat16


def test_int4_is_for_cpus() -> None:
    with pytest.raises(ModelError, match="for CPUs"):
        Int4Linear(torch.empty(32, 32, device="meta"))
    with pytest.raises(ModelError, match="for CPUs"):
        Int4Linear(_weight(32, 32)).multiply(torch.empty(1, 32, device="meta"))


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="`int3` is no quantization"):
        quantization_of("int3")


def test_a_dense_map_names_its_weight() -> None:
    linear = Linear(4, 3, bias=False)
    assert linear.dense_weight() is linear.weight


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_joined_maps_give_the_outputs_of_each(kind: Any, biased: bool) -> None:
    def made(outputs: int) -> Any:
        return kind(_weight(outputs, 128), nn.Parameter(torch.randn(outputs).bfloat16()) if biased else None)

    parts = [made(outputs) for outputs in (128, 64, 192)]
    x = torch.randn(3, 128).bfloat16()
    with torch.no_grad():
        separate, dense = [part(x) for part in parts], [part.dense_weight().clone() for part in parts]
        whole = join(parts)
        if whole is None:
            # Only without the instructions that tiles of NF4 are for.
            assert kind is NF4Linear
            assert not reference.has_avx512bf16()
            return
        torch.testing.assert_close(whole.project(x), torch.cat(separate, dim=1), rtol=0, atol=2.0**-8)
        assert torch.equal(whole.dense_weight(), torch.cat(dense))
        for part, before, weight in zip(parts, separate, dense, strict=True):
            assert torch.equal(part(x), before)
            assert torch.equal(part.dense_weight(), weight)
            assert part.codes.untyped_storage().data_ptr() == whole.codes.untyped_storage().data_ptr()


def test_only_maps_of_one_kind_are_joined() -> None:
    eight, four = Int8Linear(_weight(64, 64)), Int4Linear(_weight(64, 64))
    assert join([eight, four]) is None
    assert join([Linear(64, 64, bias=False)]) is None
    assert join([four, Int4Linear(_weight(48, 64))]) is None
    assert join([eight]) is eight
