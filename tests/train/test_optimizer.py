from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from toy_run import ToyModel

from llmkit.model.initialization import build
from llmkit.model.spec import ModelSpec
from llmkit.train.optimizers.build import build_optimizers
from llmkit.train.optimizers.config import OptimizerConfig
from llmkit.train.optimizers.muon import Muon, orthogonalize


def test_adamw_follows_its_closed_form() -> None:
    weight, bias = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([0.25, -0.75])
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    config = OptimizerConfig(lr=0.01, betas=[0.8, 0.9], eps=1e-6, weight_decay=0.5)
    (optimizer,) = build_optimizers(layer, config, torch.float32)
    rng = np.random.default_rng(0)
    moments = {name: [np.zeros_like(value), np.zeros_like(value)] for name, value in (("w", weight), ("b", bias))}
    for step in range(1, 4):
        gradients = {"w": rng.normal(size=(2, 2)), "b": rng.normal(size=2)}
        layer.weight.grad = torch.tensor(gradients["w"], dtype=torch.float32)
        layer.bias.grad = torch.tensor(gradients["b"], dtype=torch.float32)
        optimizer.step()
        for name, value, decay in (("w", weight, 0.5), ("b", bias, 0.0)):
            first, second = moments[name]
            first += 0.2 * (gradients[name] - first)
            second += 0.1 * (gradients[name] ** 2 - second)
            direction = (first / (1 - 0.8**step)) / (np.sqrt(second / (1 - 0.9**step)) + 1e-6)
            value[...] = (1 - 0.01 * decay) * value - 0.01 * direction
    np.testing.assert_allclose(layer.weight.detach().numpy(), weight, rtol=2e-6)
    np.testing.assert_allclose(layer.bias.detach().numpy(), bias, rtol=2e-6)


def names_by_decay(model: nn.Module, name: str) -> dict[str, set[str]]:
    names = {id(parameter): label for label, parameter in model.named_parameters()}
    found: dict[str, set[str]] = {}
    config = OptimizerConfig.model_validate({"name": name, "weight_decay": 0.1})
    for optimizer in build_optimizers(model, config, torch.float32):
        for group in optimizer.param_groups:
            key = f"{type(optimizer).__name__} {group['weight_decay']}"
            found[key] = {names[id(parameter)] for parameter in group["params"]}
    return found


def test_norms_biases_and_embeddings_are_not_decayed() -> None:
    matrices = {f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in ("up", "down")}
    vectors = {f"blocks.{i}.{name}" for i in (0, 1) for name in ("norm.weight", "norm.bias", "up.bias", "down.bias")}
    assert names_by_decay(ToyModel(), "adamw") == {
        "AdamW 0.1": matrices | {"value.weight"},
        "AdamW 0.0": vectors | {"token.weight", "value.bias"},
    }


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    groups = names_by_decay(ToyModel(), "muon")
    assert groups["Muon 0.1"] == {f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in ("up", "down")}
    assert groups["AdamW 0.1"] == {"value.weight"}


def test_frozen_parameters_are_in_no_group() -> None:
    model = ToyModel()
    model.blocks.requires_grad_(False)
    assert names_by_decay(model, "muon") == {
        "AdamW 0.1": {"value.weight"},
        "AdamW 0.0": {"token.weight", "value.bias"},
    }


def test_every_parameter_is_updated_by_exactly_one_optimizer() -> None:
    model = ToyModel()
    for name in ("adamw", "muon", "normuon", "lion"):
        config = OptimizerConfig.model_validate({"name": name})
        groups = [g for o in build_optimizers(model, config, torch.float32) for g in o.param_groups]
        updated = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(updated) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("shape", [(24, 40), (16, 48), (48, 16), (20, 16, 24), (1, 8), (2, 200, 256)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 0.2), (torch.bfloat16, 0.25)])
def test_orthogonalised_directions_are_those_of_the_svd(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    matrices = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    assert (values.amin(-1) / values.square().sum(-1).sqrt()).min() > 1e-3
    found = orthogonalize(matrices, dtype).double()
    # In the singular basis the result is the identity, up to the width of the last polynomial's band.
    inner = left.mT @ found @ right.mT
    identity = torch.eye(inner.shape[-1], dtype=torch.float64).expand_as(inner)
    assert (torch.linalg.matrix_norm(inner - identity, 2) < tolerance).all()
    alignment = (found * (left @ right)).sum((-2, -1)) / (found.norm(dim=(-2, -1)) * (left @ right).norm(dim=(-2, -1)))
    assert (alignment > 0.98).all()


def test_orthogonalisation_ignores_the_scale_and_survives_zero() -> None:
    matrix = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonalize(matrix * 1e4), orthogonalize(matrix * 1e-4), rtol=1e-4, atol=1e-4)
    assert torch.equal(orthogonalize(torch.zeros(4, 4)), torch.zeros(4, 4))


def test_muon_follows_its_closed_form_on_matrices_whose_svd_is_known() -> None:
    # Gradients c * Q with orthogonal Q have U V^T = sign(c) Q, and so does every mixture of them.
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))[0]
    start = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parameter = nn.Parameter(start.clone())
    optimizer = Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.5)
    expected, average = start.clone(), 0.0
    # All singular values are equal, 1 / sqrt(6) after normalisation: the polynomials then give one known number.
    for scale in (1.0, -4.0, 0.5):
        parameter.grad = scale * rotation
        optimizer.step()
        average = 0.9 * average + 0.1 * scale
        direction = 0.1 * scale + 0.9 * average
        value = 1 / (6**0.5 * 1.02)
        for margin, linear, cubic, quintic in (
            (1.02, 8.28721201814563, -23.595886519098837, 17.300387312530933),
            (1.02, 4.107059111542203, -2.9478499167379106, 0.5448431082926601),
            (1.02, 3.9486908534822946, -2.908902115962949, 0.5518191394370137),
            (1.02, 3.3184196573706015, -2.488488024314874, 0.51004894012372),
            (1.0, 2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        ):
            inside = value / margin
            value = linear * inside + cubic * inside**3 + quintic * inside**5
        assert value == pytest.approx(1, abs=0.2)
        sign = 1 if direction > 0 else -1
        expected = (1 - 0.1 * 0.5) * expected - 0.1 * 0.2 * 6**0.5 * sign * value * rotation
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-9)


def test_the_size_of_muons_update_is_that_of_adamw() -> None:
    parameter = nn.Parameter(torch.zeros(64, 256))
    parameter.grad = torch.randn(64, 256, generator=torch.Generator().manual_seed(4))
    Muon([parameter], lr=1.0).step()
    assert parameter.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.1)


def test_lion_follows_its_closed_form() -> None:
    start, rng = np.array([[1.0, -2.0], [0.5, 3.0]]), np.random.default_rng(5)
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(start))
    config = OptimizerConfig(name="lion", lr=0.01, betas=[0.8, 0.95], weight_decay=0.5)
    (optimizer,) = build_optimizers(layer, config, torch.float32)
    weight, momentum = start.copy(), np.zeros_like(start)
    for _ in range(4):
        gradient = rng.normal(size=(2, 2))
        layer.weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        weight = (1 - 0.01 * 0.5) * weight - 0.01 * np.sign(0.8 * momentum + 0.2 * gradient)
        momentum = 0.95 * momentum + 0.05 * gradient
    np.testing.assert_allclose(layer.weight.detach().numpy(), weight, rtol=2e-6)


def test_normuon_evens_the_rows_of_muons_update() -> None:
    """Two steps recomputed from the definition; the orthogonal factors have tests of their own."""
    generator = torch.Generator().manual_seed(6)
    start = torch.randn(5, 9, dtype=torch.float64, generator=generator)
    parameter = nn.Parameter(start.clone())
    optimizer = Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.0, row_decay=0.75)
    expected, momentum, rows = start.clone(), torch.zeros_like(start), torch.zeros(5, dtype=torch.float64)
    for _ in range(2):
        gradient = torch.randn(5, 9, dtype=torch.float64, generator=generator)
        parameter.grad = gradient
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        factor = orthogonalize(0.1 * gradient + 0.9 * momentum)
        rows = 0.75 * rows + 0.25 * factor.square().mean(1)
        evened = factor / rows.sqrt()[:, None]
        expected -= 0.1 * 0.2 * 9**0.5 * evened * 5**0.5 / evened.norm()
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-7, atol=1e-9)
    # The rows of the first update alone are all of one size.
    fresh = nn.Parameter(torch.zeros(5, 9))
    fresh.grad = torch.randn(5, 9, generator=generator) * torch.arange(1, 6)[:, None]
    Muon([fresh], lr=1.0, row_decay=0.9).step()
    sizes = fresh.detach().norm(dim=1)
    torch.testing.assert_close(sizes, sizes.mean().expand(5), rtol=1e-4, atol=0)


@pytest.mark.parametrize("row_decay", [None, 0.9])
def test_each_matrix_of_a_stack_is_updated_as_if_alone(row_decay: float | None) -> None:
    generator = torch.Generator().manual_seed(7)
    start, gradient = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=generator)
    stack = nn.Parameter(start.clone())
    alone = [nn.Parameter(matrix.clone()) for matrix in start]
    for parameter, slope in ((stack, gradient), *zip(alone, gradient, strict=True)):
        parameter.grad = slope
    for parameters in ([stack], alone):
        Muon(parameters, lr=0.1, weight_decay=0.5, row_decay=row_decay).step()
    torch.testing.assert_close(stack.detach(), torch.stack([matrix.detach() for matrix in alone]))


def test_weights_of_experts_are_matrices_and_their_biases_are_not() -> None:
    spec = ModelSpec(family="gpt_oss", layers=1, width=16, heads=2, experts=3, experts_per_token=2)
    groups = names_by_decay(build(spec.resolve(20, pad_id=0), seed=0), "muon")
    parts = ("router", "experts.gate", "experts.up", "experts.down")
    assert {f"blocks.0.mlp.{part}.weight" for part in parts} < groups["Muon 0.1"]
    assert {f"blocks.0.mlp.{part}.bias" for part in parts} < groups["AdamW 0.0"]
    assert "blocks.0.attention.sinks" in groups["AdamW 0.0"]
