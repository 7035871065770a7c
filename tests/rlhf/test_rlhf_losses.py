"""Losses against closed forms, plain-Python recomputation in double precision, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmkit.rlhf.losses.advantages import (
    generalized_advantages,
    group_advantages,
    masked_mean,
    masked_whiten,
    token_rewards,
)
from llmkit.rlhf.losses.logprobs import token_logprobs, token_logprobs_and_entropies
from llmkit.rlhf.losses.policy import aggregate, clipped_policy_loss, clipped_value_loss, kl_estimate
from llmkit.rlhf.losses.preference import bradley_terry_loss, dpo_loss


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


class TestLogprobs:
    @pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
    def test_equal_to_the_definition(self, temperature: float) -> None:
        logits, targets = doubles(2, 3, 5), torch.tensor([[0, 4, 2], [1, 1, 3]])
        found = token_logprobs(logits, targets, temperature)
        for i in range(2):
            for j in range(3):
                row = [x / temperature for x in logits[i, j].tolist()]
                expected = row[targets[i, j]] - math.log(sum(math.exp(x) for x in row))
                assert found[i, j].item() == pytest.approx(expected, abs=1e-12)

    def test_gradient_against_finite_differences(self) -> None:
        logits = doubles(4, 6).requires_grad_()
        targets = torch.tensor([5, 0, 3, 3])
        assert torch.autograd.gradcheck(lambda x: token_logprobs(x, targets, 0.8), (logits,))

    def test_half_precision_is_computed_in_single(self) -> None:
        logits = (doubles(3, 7) * 5).to(torch.bfloat16).requires_grad_()
        targets = torch.tensor([1, 2, 6])
        found = token_logprobs(logits, targets)
        assert found.dtype == torch.float32
        torch.testing.assert_close(
            found.double(), torch.log_softmax(logits.double(), -1)[torch.arange(3), targets], atol=1e-6, rtol=0
        )
        found.sum().backward()
        assert logits.grad is not None and logits.grad.dtype == torch.bfloat16

    def test_large_logits_do_not_overflow(self) -> None:
        found = token_logprobs(torch.tensor([[1e4, 0.0, -1e4]]), torch.tensor([1]))
        assert found.item() == pytest.approx(-1e4)

    @pytest.mark.parametrize("entropy_gradient", [False, True])
    def test_entropy_of_known_distributions(self, entropy_gradient: bool) -> None:
        logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)) + 7.0
        targets = torch.tensor([0, 2])
        options = {"entropy_gradient": entropy_gradient}
        logprobs, entropies = token_logprobs_and_entropies(logits, targets, **options)
        assert logprobs.tolist() == pytest.approx([math.log(0.5), math.log(1 / 3)])
        assert entropies.tolist() == pytest.approx([1.5 * math.log(2), math.log(3)])
        sharp = [p**2 for p in (0.5, 0.25, 0.25)]
        probabilities = [p / sum(sharp) for p in sharp]
        expected = -sum(p * math.log(p) for p in probabilities)
        found = token_logprobs_and_entropies(logits[0], targets[0], 0.5, **options)[1]
        assert found.item() == pytest.approx(expected)

    def test_gradient_of_the_entropy_against_finite_differences(self) -> None:
        logits, targets = doubles(4, 6).requires_grad_(), torch.tensor([5, 0, 3, 3])
        assert torch.autograd.gradcheck(
            lambda x: token_logprobs_and_entropies(x, targets, 0.7, entropy_gradient=True), (logits,)
        )
        assert not token_logprobs_and_entropies(logits, targets)[1].requires_grad


class TestBradleyTerry:
    def test_equal_to_the_likelihood(self) -> None:
        chosen, rejected = doubles(6), doubles(6, seed=1)
        found = bradley_terry_loss(chosen, rejected)
        expected = [-log_sigmoid(c - r) for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)]
        assert found.tolist() == pytest.approx(expected, abs=1e-12)

    def test_margin_and_centering(self) -> None:
        found = bradley_terry_loss(torch.tensor([2.0]), torch.tensor([-0.5]), torch.tensor([1.0]), centering=0.1)
        assert found.item() == pytest.approx(math.log1p(math.exp(-1.5)) + 0.1 * 1.5**2)

    def test_gradient_is_the_share_of_surprise(self) -> None:
        chosen = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
        bradley_terry_loss(chosen, torch.tensor([1.1], dtype=torch.float64)).sum().backward()
        assert chosen.grad is not None
        assert chosen.grad.item() == pytest.approx(-1 / (1 + math.exp(0.3 - 1.1)))


class TestDPO:
    def test_policy_equal_to_reference_gives_log_two(self) -> None:
        a, b = doubles(5), doubles(5, seed=1)
        terms = dpo_loss(a, b, a, b, beta=0.3)
        assert terms.losses.tolist() == pytest.approx([math.log(2)] * 5)
        assert terms.chosen_rewards.tolist() == terms.rejected_rewards.tolist() == [0.0] * 5

    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_sigmoid(self, smoothing: float) -> None:
        pc, pr, rc, rr = (doubles(4, seed=i) for i in range(4))
        terms = dpo_loss(pc, pr, rc, rr, beta=0.5, label_smoothing=smoothing)
        for i in range(4):
            h = 0.5 * ((pc[i] - rc[i]) - (pr[i] - rr[i])).item()
            expected = -(1 - smoothing) * log_sigmoid(h) - smoothing * log_sigmoid(-h)
            assert terms.losses[i].item() == pytest.approx(expected, abs=1e-12)
            assert terms.chosen_rewards[i].item() == pytest.approx(0.5 * (pc[i] - rc[i]).item())
            assert terms.rejected_rewards[i].item() == pytest.approx(0.5 * (pr[i] - rr[i]).item())

    def test_ipo_and_hinge(self) -> None:
        arguments = [torch.tensor([x], dtype=torch.float64) for x in (-1.0, -3.0, -2.0, -2.5)]
        gap = (-1.0 + 2.0) - (-3.0 + 2.5)
        assert dpo_loss(*arguments, beta=0.2, loss="ipo").losses.item() == pytest.approx((gap - 2.5) ** 2)
        assert dpo_loss(*arguments, beta=0.2, loss="hinge").losses.item() == pytest.approx(1 - 0.2 * gap)
        assert dpo_loss(*arguments, beta=2.0, loss="hinge").losses.item() == 0.0

    @pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
    def test_gradients_against_finite_differences(self, loss: str) -> None:
        inputs = tuple(doubles(3, seed=i).requires_grad_() for i in range(4))
        assert torch.autograd.gradcheck(lambda *x: dpo_loss(*x, beta=0.4, loss=loss).losses, inputs)  # type: ignore[arg-type]

    def test_gradient_is_weighted_by_the_wrongness_of_the_implicit_reward(self) -> None:
        pc, pr, rc, rr = (doubles(4, seed=i) for i in range(4))
        pc.requires_grad_()
        dpo_loss(pc, pr, rc, rr, beta=0.5).losses.sum().backward()
        h = 0.5 * ((pc - rc) - (pr - rr))
        assert pc.grad is not None
        assert pc.grad.tolist() == pytest.approx((-0.5 * torch.sigmoid(-h)).tolist())


class TestClippedPolicyLoss:
    def test_gradient_at_ratio_one_is_the_policy_gradient(self) -> None:
        logits = doubles(3, 5, 7).requires_grad_()
        targets = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(1))
        advantages = doubles(3, 5, seed=2)
        logprobs = token_logprobs(logits, targets)
        losses = clipped_policy_loss(logprobs, logprobs.detach(), advantages, clip_low=0.2, clip_high=0.2).losses
        (found,) = torch.autograd.grad(losses.sum(), logits)
        one_hot = torch.nn.functional.one_hot(targets, 7).double()
        expected = -advantages[..., None] * (one_hot - torch.softmax(logits.detach(), -1))
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize(
        ("ratio", "advantage", "loss", "clipped"),
        [
            (1.1, 2.0, -2.2, False),
            (1.5, 2.0, -2.56, True),  # 1 + 0.28
            (1.5, -2.0, 3.0, False),
            (0.5, 2.0, -1.0, False),
            (0.5, -2.0, 1.6, True),  # 1 - 0.2
            (1.5, 0.0, 0.0, False),
        ],
    )
    def test_each_side_of_the_clip(self, ratio: float, advantage: float, loss: float, clipped: bool) -> None:
        logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
        terms = clipped_policy_loss(
            logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), clip_low=0.2, clip_high=0.28
        )
        assert terms.losses.item() == pytest.approx(loss)
        assert terms.clipped.item() is clipped
        terms.losses.sum().backward()
        assert logprobs.grad is not None
        assert logprobs.grad.item() == pytest.approx(0.0 if clipped else loss)

    def test_value_loss(self) -> None:
        old, returns = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2.0, 2.0, 0.0])
        values = torch.tensor([1.1, 1.8, 1.8], requires_grad=True)
        losses = clipped_value_loss(values, old, returns, clip=0.2)
        assert losses.tolist() == pytest.approx([0.5 * 0.9**2, 0.5 * 0.8**2, 0.5 * 1.8**2])
        losses.sum().backward()
        assert values.grad is not None
        # The second has left the clip towards its target: its clipped error is the worse one and has no gradient.
        assert values.grad.tolist() == pytest.approx([-0.9, 0.0, 1.8])


class TestKL:
    P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    Q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    EXACT = sum(p * math.log(p / q) for p, q in zip(P.tolist(), Q.tolist(), strict=True))

    @pytest.mark.parametrize("estimator", ["k1", "k3"])
    def test_expectation_is_the_exact_divergence(self, estimator: str) -> None:
        estimates = kl_estimate(self.P.log(), self.Q.log(), estimator)  # type: ignore[arg-type]
        assert (self.P * estimates).sum().item() == pytest.approx(self.EXACT, abs=1e-12)

    def test_k2_is_half_the_expected_squared_log_ratio(self) -> None:
        estimates = kl_estimate(self.P.log(), self.Q.log(), "k2")
        expected = sum(0.5 * p * math.log(p / q) ** 2 for p, q in zip(self.P.tolist(), self.Q.tolist(), strict=True))
        assert (self.P * estimates).sum().item() == pytest.approx(expected, abs=1e-12)

    @settings(deadline=None)
    @given(st.floats(-8, 8), st.floats(-8, 8))
    def test_k3_is_never_negative_and_zero_at_equality(self, policy: float, reference: float) -> None:
        estimate = kl_estimate(*torch.tensor([policy, reference], dtype=torch.float64), "k3").item()
        assert estimate >= -1e-15
        assert estimate == pytest.approx(math.exp(reference - policy) - 1 - (reference - policy), rel=1e-6, abs=1e-9)

    def test_gradient_of_k3_against_finite_differences(self) -> None:
        inputs = (doubles(5).requires_grad_(), doubles(5, seed=1).requires_grad_())
        assert torch.autograd.gradcheck(lambda a, b: kl_estimate(a, b, "k3"), inputs)


class TestAggregate:
    LOSSES = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    MASK = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])

    def test_token_mean(self) -> None:
        total, weight = aggregate(self.LOSSES, self.MASK, "token-mean")
        assert (total.item(), weight.item()) == (7.0, 3.0)

    def test_sequence_mean_ignores_empty_rows(self) -> None:
        total, weight = aggregate(self.LOSSES, self.MASK, "sequence-mean")
        assert (total.item(), weight.item()) == (1.5 + 4.0, 2.0)


@st.composite
def episodes(draw: st.DrawFn) -> tuple[list[float], list[float], int, int]:
    length = draw(st.integers(1, 6))
    numbers = st.lists(st.floats(-3, 3), min_size=length, max_size=length)
    return draw(numbers), draw(numbers), draw(st.integers(0, 3)), draw(st.integers(0, 3))


class TestAdvantages:
    @settings(deadline=None)
    @given(episodes(), st.floats(0, 1), st.floats(0, 1))
    def test_gae_against_the_sums_of_its_definition(
        self, episode: tuple[list[float], list[float], int, int], discount: float, trace: float
    ) -> None:
        rewards, values, before, after = episode
        length = len(rewards)
        noise = [7.0]
        row = torch.tensor([noise * before + values + noise * after], dtype=torch.float64)
        paid = torch.tensor([[0.0] * before + rewards + [0.0] * after], dtype=torch.float64)
        mask = torch.tensor([[False] * before + [True] * length + [False] * after])
        advantages, returns = generalized_advantages(paid, row, mask, discount=discount, trace=trace)
        for t in range(length):
            expected = 0.0
            for k in range(length - t):
                after_value = values[t + k + 1] if t + k + 1 < length else 0.0
                expected += (discount * trace) ** k * (rewards[t + k] + discount * after_value - values[t + k])
            assert advantages[0, before + t].item() == pytest.approx(expected, abs=1e-9)
            assert returns[0, before + t].item() == pytest.approx(expected + values[t], abs=1e-9)
        assert advantages[~mask].abs().sum().item() == 0.0

    def test_full_trace_gives_the_discounted_return(self) -> None:
        rewards = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
        _, returns = generalized_advantages(rewards, doubles(1, 3), torch.ones(1, 3).bool(), discount=0.9, trace=1.0)
        assert returns[0].tolist() == pytest.approx([1 - 0.9 * 2 + 0.81 * 3, -2 + 2.7, 3.0])

    def test_token_rewards(self) -> None:
        mask = torch.tensor([[False, True, True, False], [True, True, True, True]])
        kl = torch.tensor([[9.0, 0.5, 1.0, 9.0], [0.1, 0.2, 0.3, 0.4]])
        found = token_rewards(torch.tensor([2.0, -1.0]), kl, mask, 0.1)
        assert found[0].tolist() == pytest.approx([0.0, -0.05, 1.9, 0.0])
        assert found[1].tolist() == pytest.approx([-0.01, -0.02, -0.03, -1.04])

    def test_group_advantages(self) -> None:
        rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
        deviation = math.sqrt((0.75**2 + 3 * 0.25**2) / 3)
        scaled = group_advantages(rewards, "std", epsilon=0.0 + 1e-12)
        assert scaled[0].tolist() == pytest.approx([0.75 / deviation] + [-0.25 / deviation] * 3)
        assert scaled[1].tolist() == [0.0] * 4
        assert group_advantages(rewards, "none")[0].tolist() == [0.75, -0.25, -0.25, -0.25]

    def test_whitening(self) -> None:
        values = doubles(4, 6) * 3 + 2
        mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(3)) > 0.4
        inside = values[mask].tolist()
        mean = sum(inside) / len(inside)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in inside) / len(inside))
        found = masked_whiten(values, mask)
        assert found[mask].tolist() == pytest.approx([(x - mean) / deviation for x in inside], rel=1e-6)
        assert found[~mask].abs().sum().item() == 0.0
        assert masked_mean(values, mask).item() == pytest.approx(mean)
        assert masked_mean(values, torch.zeros_like(mask)).item() == 0.0
