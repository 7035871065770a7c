"""Weights in bfloat16, state in bfloat16, and state in other memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmkit.train.optimizers.adamw import AdamW
from llmkit.train.optimizers.build import build_optimizers, set_learning_rate
from llmkit.train.optimizers.config import OptimizerConfig
from llmkit.train.optimizers.rounding import random_bits, round_stochastically
from llmkit.train.optimizers.update_rule import Keeping

NAMES = ("adamw", "muon", "normuon", "lion", "adafactor", "schedule-free")


def bits(count: int, draw: int, key: str = "weight", seed: int = 0) -> Tensor:
    return random_bits(torch.arange(count, dtype=torch.int32), key, seed, torch.tensor(draw))


def test_the_random_bits_are_uniform_and_independent() -> None:
    draws = torch.stack([bits(4096, draw) for draw in range(64)]).double()
    assert draws.min() >= 0 and draws.max() < 65536
    # Under uniformity the mean of n draws is normal around 32767.5 with deviation 65536 / sqrt(12 n): 5 of these.
    assert abs(float(draws.mean()) - 32767.5) < 5 * 65536 / math.sqrt(12 * draws.numel())
    per_place, per_draw = draws.mean(0), draws.mean(1)
    assert float((per_place - 32767.5).abs().max()) < 5 * 65536 / math.sqrt(12 * 64)
    assert float((per_draw - 32767.5).abs().max()) < 5 * 65536 / math.sqrt(12 * 4096)
    for bit in range(16):
        share = ((draws.long() >> bit) & 1).double().mean()
        assert abs(float(share) - 0.5) < 5 * 0.5 / math.sqrt(draws.numel())
    centred = (draws - 32767.5) * math.sqrt(12) / 65536
    for other in (centred.roll(1, 0), centred.roll(1, 1), centred.roll((1, 1), (0, 1)), centred.roll(2, 1)):
        assert abs(float((centred * other).mean())) < 5 / math.sqrt(draws.numel())
    other_key = torch.stack([bits(4096, draw, "bias") for draw in range(64)]).double() - 32767.5
    assert abs(float((centred * other_key).mean())) * math.sqrt(12) / 65536 < 5 / math.sqrt(draws.numel())


def test_stochastic_rounding_is_right_on_average_and_goes_to_a_neighbour() -> None:
    values = torch.cat([torch.linspace(-3, 3, 997), torch.tensor([1e-3, -1e-38, 0.0, 65504.0])])
    draws = torch.stack([round_stochastically(values, bits(len(values), draw)) for draw in range(2000)]).double()
    exact = values.double()
    mantissa, exponent = torch.frexp(exact.abs())
    gap = torch.ldexp(torch.ones_like(mantissa), exponent - 8)
    assert ((draws - exact).abs() < gap.clamp(min=2.0**-133)).all()
    # The deviation of one rounding is at most half a gap.
    assert ((draws.mean(0) - exact).abs() <= 5 * 0.5 * gap / math.sqrt(2000)).all()
    representable = values.bfloat16().float()
    assert torch.equal(round_stochastically(representable, bits(len(values), 1)).float(), representable)
    odd = torch.tensor([math.inf, -math.inf, math.nan])
    rounded = round_stochastically(odd, torch.full((3,), 65535, dtype=torch.int32))
    assert rounded.isinf().tolist() == [True, True, False] and rounded.isnan().tolist() == [False, False, True]


def accumulate(rounding: str, steps: int = 1000) -> Tensor:
    """Many updates of a 3000th of the weight each, and then as many smaller ones back; returns the weights."""
    weight = nn.Parameter(torch.linspace(1.0, 2.0, 512).bfloat16())
    optimizer = AdamW([weight], lr=3e-4, betas=(0.0, 0.0), keeping=Keeping(rounding=rounding))  # type: ignore[arg-type]
    for _ in range(steps):
        weight.grad = torch.full_like(weight, -1.0)
        optimizer.step()
    left_out = optimizer.state[weight].get("compensation")
    if left_out is None:
        return weight.detach().double()
    # In units of the last of float32's 24 bits.
    _, exponent = torch.frexp(weight.detach().double())
    return weight.detach().double() + torch.ldexp(left_out.double(), exponent - 24)


def test_small_updates_are_lost_without_help_and_kept_with_it() -> None:
    start = torch.linspace(1.0, 2.0, 512).bfloat16().double()
    assert torch.equal(accumulate("nearest"), start)
    wide = start.float()
    for _ in range(1000):
        wide += 3e-4
    torch.testing.assert_close(accumulate("kahan"), wide.double(), rtol=1e-6, atol=0)
    stochastic, expected = accumulate("stochastic"), start + 1000 * 3e-4
    # Between neighbours a gap of 2^-7 (from 2 on 2^-6) apart, a step of s errs by sqrt(s (gap - s)) at most.
    deviation = math.sqrt(1000 * 3e-4 * 2**-6)
    assert float((stochastic - expected).abs().max()) < 5 * deviation
    assert abs(float((stochastic - expected).mean())) < 5 * deviation / math.sqrt(512)


@pytest.mark.parametrize("name", NAMES)
def test_with_kahan_the_weights_are_those_of_float32_to_the_bit(name: str) -> None:
    """Where the gradients are the same: what is computed with rounded weights differs."""
    generator = torch.Generator().manual_seed(8)
    whole, narrow = Net().bfloat16().float(), Net().bfloat16()
    config = OptimizerConfig.model_validate({"name": name, "lr": 1e-4, "rounding": "kahan"})
    pairs = [build_optimizers(model, config, torch.float32) for model in (whole, narrow)]
    for _ in range(20):
        for one, other in zip(whole.parameters(), narrow.parameters(), strict=True):
            other.grad = torch.randn(one.shape, generator=generator).bfloat16()
            one.grad = other.grad.float()
        for optimizers in pairs:
            for optimizer in optimizers:
                optimizer.step()
    for one, other in zip(whole.parameters(), narrow.parameters(), strict=True):
        state = next(o.state[other] for o in pairs[1] if other in o.state)
        bits = (other.detach().float().view(torch.int32) + state["compensation"]).view(torch.float32)
        assert torch.equal(bits, one)
        assert not torch.equal(other.float(), one)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.token = nn.Embedding(11, 16)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.out = nn.Linear(16, 11)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.2, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.out(x)


def train(model: nn.Module, steps: int, seed: int = 0, average: float | None = None, **settings: Any) -> list[float]:
    config = OptimizerConfig.model_validate({"lr": 3e-3, **settings})
    optimizers = build_optimizers(model, config, torch.float32, seed=seed, average=average)
    data = torch.Generator().manual_seed(4)
    losses = []
    for _ in range(steps):
        ids = torch.randint(11, (64,), generator=data)
        loss = nn.functional.cross_entropy(model(ids).float(), (ids * 3 + 1) % 11)
        loss.backward()
        set_learning_rate(optimizers, config.lr)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_a_model_in_bfloat16_learns_as_well_as_with_float32_weights(name: str, rounding: str) -> None:
    whole = sum(train(Net(), 90, name=name)[-20:]) / 20
    narrow = Net().bfloat16()
    found = sum(train(narrow, 90, name=name, rounding=rounding)[-20:]) / 20
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}
    assert found < whole + 0.1


@pytest.mark.parametrize("name", NAMES)
def test_state_in_bfloat16_changes_little(name: str) -> None:
    wide, narrow = train(Net(), 60, name=name), train(Net(), 60, name=name, state="bf16")
    assert sum(narrow[-20:]) == pytest.approx(sum(wide[-20:]), rel=0.05, abs=0.2)


def test_a_second_moment_in_bfloat16_does_not_stall() -> None:
    """With a decay of 0.999 each step changes it by less than nearest rounding would see."""
    weight = nn.Parameter(torch.zeros(1024))
    optimizer = AdamW([weight], lr=0.0, betas=(0.9, 0.999), keeping=Keeping(narrow_state=True))
    for step in range(1000):
        weight.grad = torch.full_like(weight, 1.0 if step == 0 else 0.0)
        optimizer.step()
    moment = optimizer.state[weight]["exp_avg_sq"]
    assert moment.dtype == torch.bfloat16
    assert float(moment.double().mean()) == pytest.approx(0.001 * 0.999**999, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_offloaded_state_gives_the_same_bits(name: str) -> None:
    """Copies come and go as they do between GPU and CPU; both ends are CPU memory here."""
    models = [Net(), Net()]
    for model, offload in zip(models, (False, True), strict=True):
        train(model, 5, name=name, offload=offload, average=0.9)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_copies_are_made_for_a_few_parameters_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.train.optimizers.update_rule.BUCKET", 200)
    calls: list[list[int]] = []
    original = AdamW.update

    def update(self: AdamW, group: Any, weights: list[Tensor], *rest: Any) -> None:
        calls.append([weight.numel() for weight in weights])
        original(self, group, weights, *rest)

    monkeypatch.setattr(AdamW, "update", update)
    train(Net(), 1, offload=True)
    assert sorted(size for sizes in calls for size in sizes) == sorted(
        parameter.numel() for parameter in Net().parameters()
    )
    assert all(len(sizes) == 1 or sum(sizes) <= 200 for sizes in calls)
    assert max(len(sizes) for sizes in calls) > 1


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_seed_and_count_decide_the_rounding(rounding: str) -> None:
    digests = []
    for seed in (1, 1, 2):
        model = Net().bfloat16()
        train(model, 6, seed=seed, rounding=rounding)
        digests.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(digests[0], digests[1])
    assert torch.equal(digests[0], digests[2]) == (rounding == "kahan")


def test_without_these_settings_adamw_is_torchs_to_the_bit() -> None:
    ours, theirs = Net(), Net()
    train(ours, 5, weight_decay=0.0)
    reference = torch.optim.AdamW(theirs.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    data = torch.Generator().manual_seed(4)
    for _ in range(5):
        ids = torch.randint(11, (64,), generator=data)
        nn.functional.cross_entropy(theirs(ids), (ids * 3 + 1) % 11).backward()
        reference.step()
        reference.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
