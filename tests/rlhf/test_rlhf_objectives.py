"""Objectives on small models against recomputation from full logits, token by token, in plain Python."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rlhf_worlds import make_model
from torch import Tensor

from llmkit.data.examples import Conversation, Preference
from llmkit.model.load import load_model
from llmkit.model.transformer import Transformer
from llmkit.rlhf.config import BradleyTerryConfig, DPOConfig, GRPOConfig, PPOConfig
from llmkit.rlhf.encoding import Pair, encode_pair, encode_prompt
from llmkit.rlhf.policy import ActorCritic, GRPOObjective, PPOObjective
from llmkit.rlhf.preferences import (
    DPOObjective,
    PairSource,
    RewardModelObjective,
    collate,
    reference_logprobs,
)
from llmkit.rlhf.rewards import Contains, ExactMatch
from llmkit.rlhf.rollout import Rollout, new_rollout
from llmkit.rlhf.scoring import RewardModelScorer, Scorer
from llmkit.tokenizer.tokenizer import Tokenizer

PROMPTS = [[5, 6, 7], [8, 9], [10]]
ANSWERS = [[11, 12], [13, 14, 15, 3], [16]]


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def double_logprobs(model: Transformer, ids: list[int], temperature: float = 1.0) -> list[float]:
    """Log-probability of each token after the first, from full logits in double precision."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0].double() / temperature
    return [torch.log_softmax(logits[p], -1)[ids[p + 1]].item() for p in range(len(ids) - 1)]


@pytest.fixture
def model(tokenizer: Tokenizer) -> Transformer:
    return make_model(tokenizer)


@pytest.fixture
def other(tokenizer: Tokenizer) -> Transformer:
    return make_model(tokenizer, seed=99)


def rows_of(values: list[list[float]], rollout: Rollout) -> Tensor:
    """Values of the answers' tokens, put where the rollout has them."""
    placed = torch.zeros_like(rollout.advantages)
    for row, (prompt, row_values) in enumerate(zip(PROMPTS, values, strict=True)):
        begin = len(prompt) - 1
        placed[row, begin : begin + len(row_values)] = torch.tensor(row_values)
    return placed


def made_rollout(advantages: list[list[float]]) -> Rollout:
    rewards = torch.tensor([1.0, 0.0, 0.5])
    rollout = new_rollout(PROMPTS, ANSWERS, [False, True, False], rewards, rewards[:, None])
    return replace(rollout, advantages=rows_of(advantages, rollout))


ADVANTAGES = [[1.0, 1.0], [-0.5, -0.5, -0.5, -0.5], [2.0]]


class TestRollout:
    def test_mask_covers_the_tokens_that_predict_answers(self) -> None:
        rollout = made_rollout(ADVANTAGES)
        assert rollout.mask.int().tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
        assert rollout.tokens == 5 + 6 + 2

    def test_parts_are_padded_to_their_own_longest(self) -> None:
        part = made_rollout(ADVANTAGES).take([2, 0])
        assert part.input_ids.tolist() == [[10, 16, 0, 0, 0], [5, 6, 7, 11, 12]]
        assert part.advantages.tolist() == [[2.0, 0, 0, 0], [0, 0, 1.0, 1.0]]
        assert made_rollout(ADVANTAGES).take([2]).input_ids.tolist() == [[10, 16]]

    def test_state_gives_the_same_rollout(self) -> None:
        rollout = made_rollout(ADVANTAGES)
        again = Rollout(**rollout.state_dict())
        assert again.old_logprobs is None
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in rollout.state_dict().items())


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean"])
def test_grpo_loss(model: Transformer, other: Transformer, aggregation: str) -> None:
    temperature, settings = 0.8, GRPOConfig(kl_coefficient=0.3, clip_high=0.3, aggregation=aggregation)  # type: ignore[arg-type]
    rollout = made_rollout(ADVANTAGES)
    shifts = [[0.5, -0.5], [0.5, -0.5, 0.01, 0.0], [-0.5]]
    old, ref, expected, units = [], [], 0.0, 0.0
    clipped = 0
    for prompt, answer, advantage, shift in zip(PROMPTS, ANSWERS, ADVANTAGES, shifts, strict=True):
        now = double_logprobs(model, prompt + answer, temperature)[len(prompt) - 1 :]
        then = double_logprobs(other, prompt + answer, temperature)[len(prompt) - 1 :]
        losses = []
        for p, r, a, s in zip(now, then, advantage, shift, strict=True):
            ratio = math.exp(s)
            bounded = min(max(ratio, 0.8), 1.3)
            clipped += bounded * a < ratio * a
            losses.append(-min(ratio * a, bounded * a) + 0.3 * (math.exp(r - p) - 1 - (r - p)))
        old.append([p - s for p, s in zip(now, shift, strict=True)])
        ref.append(then)
        expected += sum(losses) if aggregation == "token-mean" else sum(losses) / len(losses)
        units += len(losses) if aggregation == "token-mean" else 1
    rollout = replace(rollout, old_logprobs=rows_of(old, rollout), ref_logprobs=rows_of(ref, rollout))
    output = GRPOObjective(settings, temperature, ["contains"]).loss(model, rollout)
    assert output.sum.item() == pytest.approx(expected, rel=1e-5)
    assert float(output.weight) == units
    assert output.tokens == 13
    assert float(output.metrics["clip_fraction"][0]) == clipped
    assert [float(value) for value in output.metrics["reward"]] == [1.5, 3.0]
    assert [float(value) for value in output.metrics["completion_length"]] == [7.0, 3.0]
    assert [float(value) for value in output.metrics["finished"]] == [1.0, 3.0]


def test_grpo_gradient_without_old_logprobs_is_the_policy_gradient(model: Transformer) -> None:
    output = GRPOObjective(GRPOConfig(kl_coefficient=0.0), 1.0, ["contains"]).loss(model, made_rollout(ADVANTAGES))
    output.sum.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    surrogate = torch.zeros(())
    for prompt, answer, advantage in zip(PROMPTS, ANSWERS, ADVANTAGES, strict=True):
        ids = prompt + answer
        logprobs = torch.log_softmax(model(torch.tensor([ids]))[0], -1)
        for place, token in enumerate(answer):
            surrogate = surrogate - advantage[0] * logprobs[len(prompt) - 1 + place, token]
    surrogate.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_answers_that_do_not_count_teach_nothing(model: Transformer) -> None:
    objective = GRPOObjective(GRPOConfig(kl_coefficient=0.0), 1.0, ["contains"])
    rollout = made_rollout(ADVANTAGES)
    masked = replace(rollout, counted=torch.tensor([False, True, False]))
    alone = replace(rollout, advantages=rollout.advantages * torch.tensor([[0.0], [1.0], [0.0]]))
    assert objective.loss(model, masked).sum.item() == objective.loss(model, alone).sum.item() != 0.0


def test_ppo_loss(model: Transformer) -> None:
    settings = PPOConfig(value_coefficient=0.5, entropy_coefficient=0.1, value_clip=0.2)
    critic = ActorCritic(model)
    torch.nn.init.normal_(critic.value_head.weight, generator=torch.Generator().manual_seed(0))
    rollout = made_rollout(ADVANTAGES)
    returns = [[0.3, -0.2], [0.1, 0.2, 0.3, 0.4], [1.0]]
    old_values = [[0.0, 0.1], [0.2, 0.1, 0.0, -0.1], [0.5]]
    old, expected = [], 0.0
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        ids, begin = torch.tensor([prompt + answer]), len(prompt) - 1
        with torch.no_grad():
            hidden = model.hidden(ids)[0].double()
            logits = model(ids)[0].double()
        weight, bias = critic.value_head.weight[0].double(), critic.value_head.bias.double()
        now = double_logprobs(model, prompt + answer)[begin:]
        old.append([p - 0.1 for p in now])
        for place in range(len(answer)):
            value = (hidden[begin + place] @ weight + bias).item()
            target, before = returns[row][place], old_values[row][place]
            bounded = before + min(max(value - before, -0.2), 0.2)
            probabilities = torch.softmax(logits[begin + place], -1)
            entropy = -(probabilities * probabilities.log()).sum().item()
            policy = -math.exp(0.1) * ADVANTAGES[row][place]
            expected += policy + 0.5 * 0.5 * max((value - target) ** 2, (bounded - target) ** 2) - 0.1 * entropy
    rollout = replace(
        rollout,
        old_logprobs=rows_of(old, rollout),
        values=rows_of(old_values, rollout),
        returns=rows_of(returns, rollout),
    )
    output = PPOObjective(settings, 1.0, ["contains"]).loss(critic, rollout)
    assert output.sum.item() == pytest.approx(expected, rel=1e-5)
    assert float(output.weight) == 7.0
    output.sum.backward()
    assert critic.value_head.weight.grad is not None


def pairs(tokenizer: Tokenizer) -> list[Pair]:
    rows = [
        Preference("a", [say("user", " red blue")], " green", " grey pink gold"),
        Preference("b", [say("user", " teal")], " plum lime", " rust"),
    ]
    return [encode_pair(tokenizer, row) for row in rows]


class TestPairs:
    def test_answers_stand_where_the_assistant_speaks(self, tokenizer: Tokenizer) -> None:
        pair = pairs(tokenizer)[0]
        end = tokenizer.end_of_turn_id
        assert pair.chosen.ids[pair.chosen.begin : pair.chosen.end] == [*tokenizer.encode(" green"), end]
        assert pair.rejected.ids[pair.rejected.begin : pair.rejected.end] == [*tokenizer.encode(" grey pink gold"), end]
        assert pair.chosen.ids[: pair.chosen.begin] == pair.rejected.ids[: pair.rejected.begin]

    def test_earlier_turns_of_the_assistant_are_no_answer(self, tokenizer: Tokenizer) -> None:
        prompt = [say("user", " red"), say("assistant", " blue"), say("user", " teal")]
        pair = encode_pair(tokenizer, Preference("a", prompt, " green", " grey"))
        assert pair.chosen.end - pair.chosen.begin == 2

    def test_dpo_loss(self, tokenizer: Tokenizer, model: Transformer, other: Transformer) -> None:
        rows, beta = pairs(tokenizer), 0.7
        source = PairSource(rows, 2, 2, 0)
        source.ref_logprobs = reference_logprobs(other, source, [0, 1], "test")
        (batch,) = source.cut([0, 1])
        output = DPOObjective(DPOConfig(beta=beta)).loss(model, batch)
        expected, correct = 0.0, 0
        for pair in rows:
            gap = 0.0
            for sign, answer in ((1, pair.chosen), (-1, pair.rejected)):
                for side, network in ((1, model), (-1, other)):
                    span = slice(answer.begin - 1, answer.end - 1)
                    gap += sign * side * sum(double_logprobs(network, answer.ids)[span])
            expected += math.log1p(math.exp(-beta * gap))
            correct += gap > 0
        assert output.sum.item() == pytest.approx(expected, rel=1e-5)
        assert (float(output.weight), float(output.metrics["accuracy"][0])) == (2.0, correct)

    def test_policy_equal_to_reference_gives_log_two(self, tokenizer: Tokenizer, model: Transformer) -> None:
        source = PairSource(pairs(tokenizer), 2, 1, 0)
        source.ref_logprobs = reference_logprobs(model, source, [0, 1], "test")
        for batch in source.cut([0, 1]):
            assert DPOObjective(DPOConfig()).loss(model, batch).sum.item() == pytest.approx(math.log(2), abs=1e-6)

    def test_reference_is_kept_in_a_file(self, tokenizer: Tokenizer, model: Transformer, tmp_path: Path) -> None:
        source, cache = PairSource(pairs(tokenizer), 2, 1, 0), tmp_path / "reference.safetensors"
        found = reference_logprobs(model, source, [1], "test", cache)
        assert found[0].isnan().all()
        assert torch.equal(reference_logprobs(None, source, [1], "test", cache)[1], found[1])  # type: ignore[arg-type]

    def test_reward_model_loss(self, tokenizer: Tokenizer) -> None:
        judge = make_model(tokenizer, head="reward")
        rows = pairs(tokenizer)
        output = RewardModelObjective(BradleyTerryConfig(margin=0.5, centering=0.2)).loss(judge, collate(rows))
        expected = 0.0
        for pair in rows:
            with torch.no_grad():
                chosen, rejected = (judge(torch.tensor([a.ids])).item() for a in (pair.chosen, pair.rejected))
            expected += math.log1p(math.exp(-(chosen - rejected - 0.5))) + 0.2 * (chosen + rejected) ** 2
        assert output.sum.item() == pytest.approx(expected, rel=1e-5)

    def test_source_reads_every_pair_once_an_epoch(self, tokenizer: Tokenizer) -> None:
        source = PairSource(pairs(tokenizer) * 5, 5, 2, 7)
        sizes = [[batch.pairs for batch in source.batches(step)] for step in range(2)]
        assert sizes == [[2, 2, 1], [2, 2, 1]]
        seen = [row for step in range(2) for row in source.sampler.indices(step).tolist()]
        assert sorted(seen) == list(range(10))
        assert source.used(1) == sorted(seen[:5])


class TestScoring:
    def test_weights_tasks_and_names(self, tokenizer: Tokenizer) -> None:
        functions = [
            ExactMatch(name="exact_match", weight=2.0),
            Contains(name="contains", text="red", tasks=["colour"], weight=-0.5),
            Contains(name="contains", text="blue"),
        ]
        rows = [Conversation(str(i), [say("user", " lime"), say("assistant", " red")], task) for i, task in
                enumerate(["colour", None])]  # fmt: skip
        prompts = [encode_prompt(tokenizer, row) for row in rows]
        scorer = Scorer(functions)
        assert scorer.names == ["exact_match", "contains", "contains_2"]
        scores = scorer.score(prompts, ["red", "blue"])
        assert scores.rewards.tolist() == [1.5, 1.0]
        assert scores.parts[0].tolist() == [1.0, 1.0, 0.0]
        assert scores.parts[1].isnan().tolist() == [False, True, False]

    def test_reward_model_reads_the_rendered_conversation(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        judge = make_model(tokenizer, head="reward")
        prompt = encode_prompt(tokenizer, Conversation("a", [say("user", " lime"), say("assistant", " red")]))
        texts = [" red", " red blue green", ""]
        found = Scorer([], RewardModelScorer(judge, tokenizer), 0.5).score([prompt] * 3, texts)
        for text, reward, part in zip(texts, found.rewards.tolist(), found.parts.tolist(), strict=True):
            ids = tokenizer.render_conversation([say("user", " lime"), say("assistant", text)]).ids
            with torch.no_grad():
                expected = judge(torch.tensor([ids])).item()
            assert part == pytest.approx([expected], abs=1e-6)
            assert reward == pytest.approx(0.5 * expected, abs=1e-6)


def test_old_and_new_policy_agree_to_the_bit(base: Path) -> None:
    """What makes the first ratio exactly one: the same rows in the same micro-batch give the same bits."""
    model, rollout = load_model(base), made_rollout(ADVANTAGES)
    objective = GRPOObjective(GRPOConfig(kl_coefficient=0.0), 1.0, ["contains"])
    first, second = objective.loss(model, rollout).sum, objective.loss(model, rollout).sum
    assert torch.equal(first, second)
