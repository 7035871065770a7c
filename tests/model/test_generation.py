"""The generation engine against the plain forward pass, one token at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llmkit.errors import DataError
from llmkit.model.generation import Generator
from llmkit.model.initialization import build
from llmkit.model.sampling import Completion, Sampling
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer

VOCABULARY, CONTEXT = 50, 48
LENGTHS = [7, 1, 20, 3, 20, 12, 33, 2, 5, 9, 30, 4]


def _model(family: str = "llama", **settings: Any) -> Transformer:
    settings = {"layers": 2, "width": 32, "heads": 4, "context": CONTEXT, "init_std": 0.3, **settings}
    if family == "llama":
        settings |= {"kv_heads": 2}
    config = ModelSpec(family=family, **settings).resolve(VOCABULARY, pad_id=0, eos_ids=(1,))
    return build(config, seed=1).eval()


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in LENGTHS]


@torch.no_grad()
def _greedy(model: Transformer, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Token by token with the whole sequence each time."""
    ids, logprobs = list(prompt), []
    while len(ids) < min(len(prompt) + count, CONTEXT):
        scores = torch.log_softmax(model(torch.tensor([ids]))[0, -1].double(), dim=-1)
        ids.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
        if ids[-1] == 1:
            break
    return ids[len(prompt) :], logprobs


@pytest.mark.parametrize("max_batch", [1, 5, 64])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_tokens_are_those_of_the_full_forward_pass(family: str, max_batch: int) -> None:
    model, prompts = _model(family), _prompts()
    completions = Generator(model, max_batch=max_batch).generate(prompts, Sampling(temperature=0, max_new_tokens=17))
    reasons = set()
    for prompt, completion in zip(prompts, completions, strict=True):
        token_ids, logprobs = _greedy(model, prompt, 17)
        assert completion.token_ids == token_ids
        assert completion.logprobs == pytest.approx(logprobs, abs=1e-5)
        assert completion.sampling_logprobs == [0.0] * len(token_ids)
        assert completion.text is None
        reasons.add(completion.finish_reason)
        if completion.finish_reason == "context":
            assert len(prompt) + len(token_ids) == CONTEXT
    assert {"length", "context"} <= reasons


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_k": 20}, {"top_p": 0.9}], ids=str)
def test_samples_do_not_depend_on_what_else_is_in_the_batch(settings: dict[str, Any]) -> None:
    model, prompts = _model(), _prompts()
    sampling = Sampling(max_new_tokens=15, n=3, seed=9, **settings)
    together = Generator(model).generate(prompts, sampling)
    assert len(together) == 3 * len(prompts)
    assert len({tuple(completion.token_ids) for completion in together}) == len(together)
    few = Generator(model, max_batch=4).generate(prompts, sampling)
    backwards = Generator(model).generate(prompts[::-1], sampling, keys=range(len(prompts))[::-1])
    for row, prompt in enumerate(prompts):
        alone = Generator(model, max_batch=1).generate([prompt], sampling, keys=[row])
        for sample in range(3):
            place = 3 * row + sample
            _same(alone[sample], together[place])
            _same(few[place], together[place])
            _same(backwards[3 * (len(prompts) - 1 - row) + sample], together[place])


def _same(one: Completion, two: Completion) -> None:
    assert one.token_ids == two.token_ids
    assert one.finish_reason == two.finish_reason
    assert one.logprobs == pytest.approx(two.logprobs, abs=1e-5)
    assert one.sampling_logprobs == pytest.approx(two.sampling_logprobs, abs=1e-5)


def test_seeds_change_samples_and_repeat_them() -> None:
    generator, prompts = Generator(_model()), _prompts()
    first, again, other = (generator.generate(prompts, Sampling(seed=seed, max_new_tokens=12)) for seed in (1, 1, 2))
    assert first == again
    assert all(one.token_ids != two.token_ids for one, two in zip(first, other, strict=True))
    assert generator.generate(prompts, Sampling(seed=1, max_new_tokens=12), keys=[5] * len(prompts)) != first


def test_a_longer_answer_continues_a_shorter_one() -> None:
    generator, prompts = Generator(_model()), _prompts()[:4]
    short = generator.generate(prompts, Sampling(max_new_tokens=4))
    long = generator.generate(prompts, Sampling(max_new_tokens=14))
    assert [completion.token_ids for completion in short] == [completion.token_ids[:4] for completion in long]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6}, {"temperature": 1.3, "top_k": 5}], ids=str)
def test_log_probabilities_are_those_of_the_full_forward_pass(settings: dict[str, Any]) -> None:
    model, prompts = _model(), _prompts()
    sampling = Sampling(max_new_tokens=10, **settings)
    for prompt, completion in zip(prompts, Generator(model).generate(prompts, sampling), strict=True):
        ids = torch.tensor([prompt + completion.token_ids])
        with torch.no_grad():
            logits = model(ids)[0, len(prompt) - 1 : -1].double()
        plain = torch.log_softmax(logits, dim=-1)
        scaled = logits / sampling.temperature
        if sampling.top_k is not None:
            scaled = scaled.masked_fill(scaled < scaled.topk(sampling.top_k).values[:, -1:], float("-inf"))
        filtered = torch.log_softmax(scaled, dim=-1)
        for index, token in enumerate(completion.token_ids):
            assert completion.logprobs[index] == pytest.approx(plain[index, token].item(), abs=1e-5)
            assert completion.sampling_logprobs[index] == pytest.approx(filtered[index, token].item(), abs=1e-5)


def test_samples_follow_the_model() -> None:
    """First tokens of many answers to one prompt: chi-square against the model's distribution."""
    model = _model(init_std=0.15)
    count = 4000
    completions = Generator(model).generate([[3, 4, 5]], Sampling(max_new_tokens=1, n=count))
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([[3, 4, 5]]))[0, -1].double(), dim=-1) * count
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=VOCABULARY).double()
    usual = expected >= 5
    observed = torch.cat([counts[usual], counts[~usual].sum()[None]])
    expected = torch.cat([expected[usual], expected[~usual].sum()[None].clamp(min=1e-9)])
    freedom = len(expected) - 1
    assert freedom > 15
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    # Wilson and Hilferty: passed about once in a thousand.
    assert (statistic / freedom) ** (1 / 3) < 1 - 2 / (9 * freedom) + 3.1 * (2 / (9 * freedom)) ** 0.5


def _counting_model() -> Transformer:
    """A model that writes t + 1 after t: the embedding is the identity, the blocks add nothing, the head shifts."""
    spec = ModelSpec(family="llama", layers=1, width=VOCABULARY, heads=1, context=200, tie_embeddings=False)
    model = build(spec.resolve(VOCABULARY, pad_id=0, eos_ids=(40,)), seed=0).eval()
    with torch.no_grad():
        model.embeddings.token.weight.copy_(torch.eye(VOCABULARY))
        model.blocks[0].attention.output.weight.zero_()
        model.blocks[0].mlp.down.weight.zero_()
        model.head.projection.weight.copy_(100 * torch.eye(VOCABULARY).roll(1, dims=0))
    return model


PIECES = {10: "He", 11: "llo", 12: " wor", 13: "ld.", 14: "\n", 15: "\n", 16: "Us", 17: "er:", 18: " x"}


def _decode(token_ids: list[int]) -> str:
    return "".join(PIECES.get(token, f"<{token}>") for token in token_ids)


@pytest.mark.parametrize(
    ("stop", "text", "token_ids"),
    [
        (("\n\n",), "Hello world.", [10, 11, 12, 13]),
        (("User:", "x"), "Hello world.\n\n", [10, 11, 12, 13, 14, 15]),
        (("o w",), "Hell", [10, 11]),
        (("lo", "ell"), "H", [10]),
        (("ld.\n", "d"), "Hello worl", [10, 11, 12, 13]),
        (("He",), "", []),
        (("<20>",), "Hello world.\n\nUser: x<19>", list(range(10, 20))),
    ],
)
def test_stop_texts_across_tokens(stop: tuple[str, ...], text: str, token_ids: list[int]) -> None:
    generator = Generator(_counting_model(), decode=_decode)
    sampling = Sampling(temperature=0, stop=stop, max_new_tokens=25)
    completions = generator.generate([[5, 9], [9], [9], [30]], sampling)
    for completion in completions[:3]:
        assert (completion.text, completion.token_ids, completion.finish_reason) == (text, token_ids, "stop")
        assert len(completion.logprobs) == len(completion.sampling_logprobs) == len(token_ids)
    assert completions[3].token_ids[-1] == 40
    assert completions[3].text == _decode(list(range(31, 40)))


def test_a_stop_token_is_kept_in_the_tokens_and_left_out_of_the_text() -> None:
    generator = Generator(_counting_model(), decode=_decode)
    (by_default,) = generator.generate([[36]], Sampling(temperature=0))
    assert (by_default.token_ids, by_default.text) == ([37, 38, 39, 40], "<37><38><39>")
    (chosen,) = generator.generate([[36]], Sampling(temperature=0, stop_ids=(39, 12)))
    assert (chosen.token_ids, chosen.text, chosen.finish_reason) == ([37, 38, 39], "<37><38>", "stop")
    (none,) = generator.generate([[36]], Sampling(temperature=0, stop_ids=(), max_new_tokens=6))
    assert (none.token_ids, none.finish_reason) == ([37, 38, 39, 40, 41, 42], "length")


@pytest.mark.parametrize("stop", [(), ("\n\n",), ("er", "zzz"), ("<40>",)])
def test_a_stream_joined_is_the_completion(stop: tuple[str, ...]) -> None:
    generator = Generator(_counting_model(), decode=_decode)
    sampling = Sampling(temperature=0, stop=stop, max_new_tokens=40)
    (completion,) = generator.generate([[9]], sampling)
    pieces = list(generator.stream([9], sampling))
    assert "".join(piece.text for piece in pieces) == completion.text
    assert [token for piece in pieces for token in piece.token_ids] == completion.token_ids
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == completion.finish_reason
    assert len(pieces) > 3


def test_a_stream_without_texts_gives_tokens_and_follows_the_key() -> None:
    model, prompt = _model(), _prompts()[0]
    sampling = Sampling(max_new_tokens=9, seed=3)
    (completion,) = Generator(model).generate([prompt], sampling, keys=[8])
    pieces = list(Generator(model).stream(prompt, sampling, key=8))
    assert [token for piece in pieces for token in piece.token_ids] == completion.token_ids
    assert all(len(piece.token_ids) == 1 for piece in pieces)
    with pytest.raises(ValueError, match="n must be 1"):
        next(Generator(model).stream(prompt, Sampling(n=2)))


def test_prompts_that_cannot_be_continued() -> None:
    generator = Generator(_model(), decode=_decode)
    full, long = [2] * CONTEXT, [2] * (CONTEXT + 1)
    completions = generator.generate([full, [2, 3]], Sampling(max_new_tokens=3, temperature=0))
    assert completions[0] == Completion([], [], [], "context", "")
    assert len(completions[1].token_ids) == 3
    assert next(iter(generator.stream(full, Sampling()))).finish_reason == "context"
    for prompts, message in [
        ([[2], long], "prompt 1: has 49 tokens, the model's context 48"),
        ([[2], []], "prompt 1: is empty"),
        ([[2, 50]], "prompt 0: holds token ids outside the vocabulary of 50"),
        ([[-1]], "outside the vocabulary"),
    ]:
        with pytest.raises(DataError, match=message):
            generator.generate(prompts, Sampling())
    assert generator.generate([], Sampling()) == []


def test_what_the_generator_refuses() -> None:
    model = _model()
    with pytest.raises(ValueError, match="stop texts need a generator that can decode"):
        Generator(model).generate([[2]], Sampling(stop=("x",)))
    with pytest.raises(ValueError, match="2 prompts but 1 keys"):
        Generator(model).generate([[2], [3]], Sampling(), keys=[1])
    with pytest.raises(ValueError, match="reward head writes no text"):
        Generator(build(model.config.with_head("reward"), seed=0))
    with pytest.raises(ValueError, match="empty stop text"):
        Sampling(stop=("",))


def test_modes_come_back_and_dropout_is_off() -> None:
    model = _model(dropout=0.5)
    prompts = _prompts()
    sampling = Sampling(temperature=0, max_new_tokens=6)
    expected = Generator(model).generate(prompts, sampling)
    model.train()
    model.blocks[1].eval()
    assert Generator(model).generate(prompts, sampling) == expected
    assert model.training
    assert model.blocks[0].mlp.training
    assert not model.blocks[1].training
    with pytest.raises(DataError):
        Generator(model).generate([[]], sampling)
    assert model.training


def test_generation_uses_the_weights_of_the_moment() -> None:
    model = _counting_model()
    generator = Generator(model)
    sampling = Sampling(temperature=0, max_new_tokens=3)
    assert generator.generate([[5]], sampling)[0].token_ids == [6, 7, 8]
    with torch.no_grad():
        model.head.projection.weight.copy_(100 * torch.eye(VOCABULARY).roll(2, dims=0))
    assert generator.generate([[5]], sampling)[0].token_ids == [7, 9, 11]


def test_autocast_generates_and_training_goes_on_under_it() -> None:
    model = _counting_model()
    generator = Generator(model)
    with torch.autocast("cpu", torch.bfloat16):
        (completion,) = generator.generate([[5]], Sampling(temperature=0, max_new_tokens=3))
        loss: Tensor = model(torch.tensor([[5, 6, 7]])).float().logsumexp(-1).sum()
    loss.backward()
    assert completion.token_ids == [6, 7, 8]
    assert model.blocks[0].mlp.up.weight.grad is not None


def test_half_precision_weights_generate() -> None:
    model = _counting_model().to(torch.bfloat16)
    (completion,) = Generator(model).generate([[5]], Sampling(temperature=0, max_new_tokens=4))
    assert completion.token_ids == [6, 7, 8, 9]


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    Generator(_model()).generate(_prompts(), Sampling(max_new_tokens=5))
    assert torch.equal(torch.get_rng_state(), before)


def test_prompts_that_prefill_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = _model(), _prompts()
    sampling = Sampling(max_new_tokens=6, n=2)
    expected = Generator(model).generate(prompts, sampling)
    monkeypatch.setattr("llmkit.model.batch._PREFILL_TOKENS", 40)
    for one, two in zip(Generator(model).generate(prompts, sampling), expected, strict=True):
        _same(one, two)
