from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from llmkit.errors import ConfigError
from llmkit.model.initialization import build
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer
from llmkit.train.optimizers.build import build_optimizers, treatments
from llmkit.train.optimizers.config import OptimizerConfig
from llmkit.train.optimizers.scaling import scale_initial_weights, width_factors

BASE = 32


def make(width: int, *, scaled: bool = True, family: str = "llama", tie: bool = True) -> Transformer:
    spec = ModelSpec(family=family, layers=2, width=width, heads=width // 16, mlp_width=3 * width, tie_embeddings=tie)
    model = build(spec.resolve(61, pad_id=None), seed=1)
    if scaled:
        scale_initial_weights(model, BASE)
    return model


def spectral(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach().double(), 2))


def hidden(model: Transformer) -> Mapping[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if n.startswith("blocks.") and p.dim() == 2}


def test_at_the_base_width_nothing_changes() -> None:
    one, other = make(BASE), make(BASE, scaled=False)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert {tuple(factors) for factors in width_factors(one, BASE).values()} == {(1.0, 1.0, 1.0)}


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "adafactor"])
def test_norms_of_matrices_and_of_their_updates_meet_the_spectral_condition(name: str) -> None:
    """Weights and updates: sqrt(outputs / inputs), times a constant that the width does not change."""
    found: dict[int, dict[str, tuple[float, float]]] = {}
    for width in (32, 128):
        model = make(width)
        before = {key: parameter.detach().clone() for key, parameter in hidden(model).items()}
        settings = OptimizerConfig.model_validate({"name": name, "lr": 0.01, "weight_decay": 0.0, "base_width": BASE})
        optimizers = build_optimizers(model, settings, torch.float32)
        # Gradients of rank one, as those of matrices are in the infinite-width limit: of one direction.
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            shape = [torch.randn(size, generator=generator) for size in parameter.shape]
            parameter.grad = torch.outer(*shape) if parameter.dim() == 2 else shape[0]
        for optimizer in optimizers:
            optimizer.step()
        found[width] = {}
        for key, parameter in hidden(model).items():
            wanted = math.sqrt(parameter.shape[0] / parameter.shape[1])
            found[width][key] = (spectral(before[key]) / wanted, spectral(parameter - before[key]) / wanted)
    for key, (weight, update) in found[32].items():
        assert found[128][key][0] == pytest.approx(weight, rel=0.25)
        assert found[128][key][1] == pytest.approx(update, rel=0.25)


def coordinates(width: int, scaled: bool, name: str, tie: bool = True, family: str = "llama") -> dict[str, float]:
    """Root mean squares of how features and logits have changed after five steps on one batch."""
    model = make(width, scaled=scaled, family=family, tie=tie)
    settings = OptimizerConfig.model_validate(
        {"name": name, "lr": 0.01, "weight_decay": 0.0, "base_width": BASE if scaled else None}
    )
    optimizers = build_optimizers(model, settings, torch.float32)
    ids = torch.randint(61, (8, 16), generator=torch.Generator().manual_seed(2))
    seen: dict[str, Tensor] = {}
    for place, module in {"blocks": model.blocks[-1], "logits": model}.items():
        module.register_forward_hook(lambda _, __, out, place=place: seen.__setitem__(place, out.detach()))
    model(ids)
    before = dict(seen)
    for _ in range(5):
        logits = model(ids)
        nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    model(ids)
    return {place: float((seen[place] - before[place]).square().mean().sqrt()) for place in seen}


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("tie", [True, False])
def test_what_is_learned_in_a_few_steps_does_not_grow_with_the_width(name: str, tie: bool) -> None:
    """The coordinate check (Yang et al. 2022): without the rule the change of the logits grows with the width."""
    narrow, wide = coordinates(32, True, name, tie), coordinates(256, True, name, tie)
    for place in ("blocks", "logits"):
        assert 0.5 < wide[place] / narrow[place] < 2.0, place
    plain = coordinates(256, False, name, tie)
    assert plain["logits"] / coordinates(32, False, name, tie)["logits"] > 2.5


def test_what_a_step_decays_does_not_depend_on_the_width() -> None:
    config = OptimizerConfig(lr=0.01, weight_decay=0.1, base_width=32)
    for treatment in treatments(make(128), config).values():
        assert treatment.weight_decay == 0 or treatment.lr_factor * treatment.weight_decay == pytest.approx(0.1)


def test_gains_of_norms_that_multiply_by_one_more_than_their_weight() -> None:
    model = make(128, family="gemma")
    assert model.norm is not None
    # Embeddings are multiplied by the root of the width, so that a half of the rule's factor is theirs.
    torch.testing.assert_close(1 + model.norm.weight.detach(), torch.full((128,), 0.5))
    std = float(model.embeddings.token.weight.detach().std())
    assert std == pytest.approx(0.02 / 2, rel=0.05)


def test_a_tied_projection_without_a_norm_before_it_is_refused() -> None:
    model = make(64, scaled=False)
    model.norm = None
    with pytest.raises(ConfigError, match="needs a norm before"):
        width_factors(model, BASE)


def test_larger_batches_raise_the_rate_by_the_square_root() -> None:
    assert OptimizerConfig(lr=1e-3, base_batch_size=16).peak(64) == pytest.approx(2e-3)
    assert OptimizerConfig(lr=1e-3).peak(64) == 1e-3
