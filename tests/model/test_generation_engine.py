"""The engine against `transformers`, against the plain forward pass past windows and chunks, and against itself in
other batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from llmkit.model import batch
from llmkit.model.config import ModelConfig
from llmkit.model.fused import FusedModel
from llmkit.model.generation import Generator
from llmkit.model.initialization import build
from llmkit.model.layers import Linear
from llmkit.model.load import load_model
from llmkit.model.sampling import Sampling
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer

VOCABULARY = 300
PARTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "windows": {"window": 5, "local_layers": (0, 2)},
    "wide-windows": {"window": 70, "local_layers": (1,), "local_rope_theta": 500.0},
    "shared": {"kv_heads": 1},
    "caps": {"score_softcap": 3.0, "logit_softcap": 4.0, "norm_position": "sandwich", "norm_offset": True},
    "sinks": {"attention_sinks": True, "window": 9, "local_layers": (1,), "qkv_bias": True, "output_bias": True},
    "qk-norm": {"qk_norm": "head", "score_width": 20.0},
    "olmo": {"qk_norm": "projection", "norm_position": "output"},
    "parallel": {"parallel_residual": True, "rotary_share": 0.5, "norm": "layer", "gated_mlp": False, "mlp_bias": True},
    "experts": {"experts": 4, "experts_per_token": 2, "expert_width": 32, "dense_layers": (1,)},
    "scaled": {"scale_embeddings": True, "skip_first_norm": True, "activation": "gelu_tanh"},
}


def _model(dtype: torch.dtype = torch.float32, parts: str = "llama", std: float = 0.25) -> Transformer:
    spec = ModelSpec(family="llama", layers=3, width=64, heads=4, kv_heads=2, context=400, init_std=std)
    config = spec.resolve(VOCABULARY, pad_id=0, eos_ids=(1,))
    config = ModelConfig.model_validate({**config.model_dump(), **PARTS[parts]})
    return build(config, seed=1).to(dtype).eval()


def _prompts(lengths: tuple[int, ...] = (7, 1, 130, 64, 3, 65, 20)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def _logits(model: Transformer, prompt: list[int], written: list[int]) -> Tensor:
    """Logits before each written token, from one plain forward pass over everything."""
    logits: Tensor = model(torch.tensor([[*prompt, *written]]))
    return logits[0, len(prompt) - 1 : -1].double()


@pytest.mark.parametrize("chunk", [32, 256])
@pytest.mark.parametrize("parts", list(PARTS))
def test_each_token_is_the_plain_forward_passes(parts: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of several chunks, answers that go past windows and rings, rows that come and go."""
    monkeypatch.setattr(batch, "_CHUNK", chunk)
    monkeypatch.setattr(batch, "_CHUNK_TOKENS", 64 * 7)
    model = _model(parts=parts)
    prompts = _prompts()
    sampling = Sampling(temperature=0, max_new_tokens=40, stop_ids=(1, 2, 3))
    for prompt, completion in zip(prompts, Generator(model, max_batch=4).generate(prompts, sampling), strict=True):
        logits = _logits(model, prompt, completion.token_ids)
        expected = torch.log_softmax(logits, dim=-1)
        assert completion.token_ids == logits.argmax(-1).tolist()
        chosen = expected.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs).double(), chosen, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("parts", ["llama", "windows", "caps", "sinks", "qk-norm", "parallel"])
def test_bf16_is_near_fp32(parts: str) -> None:
    """Packed products, norms by other operations and the half-width cache stay within bf16's rounding."""
    model = _model(parts=parts, std=0.08)
    half = _model(torch.bfloat16, parts=parts, std=0.08)
    prompts = _prompts((7, 30, 90))
    sampling = Sampling(temperature=0, max_new_tokens=25, stop_ids=())
    for prompt, completion in zip(prompts, Generator(half).generate(prompts, sampling), strict=True):
        logits = _logits(model, prompt, completion.token_ids)
        exact = torch.log_softmax(logits, -1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert (torch.tensor(completion.logprobs) - exact).abs().mean() < 0.03
        best = torch.log_softmax(logits, -1).amax(-1)
        assert (best - exact).max() < 0.1


@pytest.mark.parametrize("parts", ["windows", "wide-windows", "shared"])
def test_tokens_do_not_depend_on_the_batch_to_the_bit(parts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 on a CPU: alone, among others, in other slots and chunks, beside longer ones; log-probabilities too."""
    monkeypatch.setattr(batch, "_CHUNK_TOKENS", 64 * 7)
    model = _model(torch.bfloat16, parts=parts)
    prompts = _prompts((7, 1, 130, 64, 3, 65, 20, 200, 33, 350))
    sampling = Sampling(max_new_tokens=15, temperature=0.9, top_p=0.95, seed=5)
    together = Generator(model, max_batch=64).generate(prompts, sampling)
    few = Generator(model, max_batch=3).generate(prompts, sampling)
    assert few == together
    for row, prompt in enumerate(prompts):
        assert Generator(model).generate([prompt], sampling, keys=[row]) == [together[row]]


def test_settings_of_each_prompt() -> None:
    model, prompts = _model(), _prompts()
    settings = [
        Sampling(temperature=0, max_new_tokens=9),
        Sampling(temperature=0.7, top_k=20, n=2, max_new_tokens=5),
        Sampling(temperature=0.7, top_k=20, seed=3, max_new_tokens=30, stop_ids=()),
        Sampling(top_p=0.8, min_p=0.05, max_new_tokens=12),
        Sampling(temperature=0, repetition_penalty=1.5, max_new_tokens=12),
        Sampling(repetition_penalty=0.9, max_new_tokens=12),
        Sampling(temperature=0, max_new_tokens=3),
    ]
    together = Generator(model).generate(prompts, settings)
    apart = [
        completion
        for row, (prompt, sampling) in enumerate(zip(prompts, settings, strict=True))
        for completion in Generator(model).generate([prompt], sampling, keys=[row])
    ]
    assert [c.token_ids for c in together] == [c.token_ids for c in apart]
    assert [c.finish_reason for c in together] == [c.finish_reason for c in apart]
    with pytest.raises(ValueError, match="7 prompts but 1 settings"):
        Generator(model).generate(prompts, settings[:1])


@pytest.mark.parametrize("parts", list(PARTS))
def test_a_request_alone_is_near_fp32(parts: str) -> None:
    """The form for one sequence: weights in halves, all else in fp32; and a stream is written in the same way."""
    model, half = _model(parts=parts, std=0.08), _model(torch.bfloat16, parts=parts, std=0.08)
    # The same weights in fp32: what is left is the rounding of the prompt's keys.
    model.load_state_dict(half.float().state_dict())
    half = _model(torch.bfloat16, parts=parts, std=0.08)
    sampling = Sampling(temperature=0, max_new_tokens=25, stop_ids=())
    for prompt in _prompts((2, 90)):
        generator = Generator(half)
        (completion,) = generator.generate([prompt], sampling, alone=True)
        exact = torch.log_softmax(_logits(model, prompt, completion.token_ids), -1)
        chosen = exact.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert (torch.tensor(completion.logprobs) - chosen)[1:].abs().mean() < 0.015
        streamed = [token for piece in generator.stream(prompt, sampling) for token in piece.token_ids]
        assert streamed == completion.token_ids


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, Path]:
    """A model of `transformers` with some structure in what it writes."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, eos_token_id=1, bos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("reference")
    model.save_pretrained(path)
    return model, path


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_greedy_tokens_are_those_of_transformers(reference: tuple[LlamaForCausalLM, Path], penalty: float) -> None:
    theirs, path = reference
    prompts = _prompts((9, 40, 2))
    sampling = Sampling(temperature=0, max_new_tokens=40, repetition_penalty=penalty)
    ours = Generator(load_model(path)).generate(prompts, sampling)
    for prompt, completion in zip(prompts, ours, strict=True):
        written = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=40,
            repetition_penalty=penalty,
        )  # fmt: skip
        assert completion.token_ids == written[0, len(prompt) :].tolist()


def test_adapters_and_other_linear_maps_are_called() -> None:
    """A projection with an adapter, and one whose class has its own product, are not passed over."""

    class Doubled(nn.Module):
        def forward(self, linear: Linear, x: Tensor) -> Tensor:
            return 2 * linear.project(x)

    class Halved(Linear):
        def project(self, x: Tensor) -> Tensor:
            return super().project(x) / 2

    sampling = Sampling(temperature=0, max_new_tokens=20, stop_ids=())
    prompts = _prompts()
    for dtype in (torch.float32, torch.bfloat16):
        model: Any = _model(dtype)
        generator = Generator(model)
        plain = generator.generate(prompts, sampling)
        model.blocks[0].attention.query.adapter = Doubled()
        model.blocks[1].mlp.gate.adapter = Doubled()
        adapted = generator.generate(prompts, sampling)
        assert [c.token_ids for c in adapted] != [c.token_ids for c in plain]
        with torch.no_grad():
            for linear in (model.blocks[0].attention.query, model.blocks[1].mlp.gate):
                linear.adapter = None
                linear.weight.mul_(2)
        merged = generator.generate(prompts, sampling)
        for linear in (model.blocks[0].attention.query, model.blocks[1].mlp.gate):
            linear.__class__ = Halved
        halved = generator.generate(prompts, sampling)
        if dtype == torch.float32:
            assert [c.token_ids for c in merged] == [c.token_ids for c in adapted]
        assert [c.logprobs[0] for c in merged] == pytest.approx([c.logprobs[0] for c in adapted], abs=0.1)
        assert [c.logprobs[0] for c in halved] == pytest.approx([c.logprobs[0] for c in plain], abs=0.1)


def test_a_form_is_kept_until_weights_change() -> None:
    model = _model(torch.bfloat16)
    generator, sampling = Generator(model), Sampling(temperature=0, max_new_tokens=3)
    generator.generate([[5]], sampling, alone=True)
    generator.generate([[5]], sampling)
    kept = dict(generator._forms)
    # Prompts are read from the modules only where weights packed in bf16 read them alike.
    read_alike = kept["packed"].precision.layout == "packed"
    assert set(kept) == ({"packed", "halves", "modules"} if read_alike else {"packed", "halves"})
    generator.generate([[5]], sampling)
    generator.generate([[5]], sampling, alone=True)
    assert generator._forms == kept
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.tensor([[5, 6]])).float().logsumexp(-1).sum().backward()
    optimizer.step()
    after = generator.generate([[5]], sampling)
    assert not set(generator._forms.values()) & set(kept.values())
    assert after == Generator(model).generate([[5]], sampling)


@pytest.mark.parametrize("parts", ["llama", "qk-norm", "caps"])
def test_training_weights_write_under_autocast(parts: str) -> None:
    """Rollouts: fp32 weights, products in bf16, the sums of the residual stream in fp32."""
    model, prompts = _model(parts=parts, std=0.08), _prompts((7, 30))
    sampling = Sampling(temperature=0, max_new_tokens=10, stop_ids=())
    generator = Generator(model)
    exact = generator.generate(prompts, sampling)
    with torch.autocast("cpu", torch.bfloat16):
        completions = generator.generate(prompts, sampling)
        for prompt, completion in zip(prompts, completions, strict=True):
            expected = torch.log_softmax(_logits(model, prompt, completion.token_ids), -1)
            chosen = expected.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logprobs).double(), chosen, atol=0.03, rtol=0.02)
    assert [completion.logprobs for completion in completions] != [completion.logprobs for completion in exact]
    assert generator.generate(prompts, sampling) == exact


def test_rings_hold_the_window_alone() -> None:
    model = _model(parts="wide-windows")
    with torch.inference_mode():
        made = batch.Batch(
            FusedModel(model),
            [batch.Request(0, tuple(_prompts((130,))[0]), 50, 0, 0, Sampling())],
            None,
            1,
        )
    assert [layer.shape[3] for layer in made.cache.layers] == [192, 96, 192]
