"""Rotary frequencies of every scaling against transformers', within and past the original context."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from llmkit.model.config import ModelConfig, RopeScaling
from llmkit.model.rotary import Rotary, rotate

_SHORT, _LONG = [1.0 + 0.1 * i for i in range(8)], [2.0 + 0.5 * i for i in range(8)]
SCALINGS: dict[str, tuple[dict[str, Any], RopeScaling | None]] = {
    "default": ({"rope_type": "default"}, None),
    "linear": ({"rope_type": "linear", "factor": 4.0}, RopeScaling(kind="linear", factor=4.0)),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, RopeScaling(kind="dynamic", factor=2.0)),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        RopeScaling(kind="yarn", factor=4.0, original_context=32),
    ),
    "yarn-untruncated": (
        {
            "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 64, "truncate": False,
            "beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.5,
        },
        RopeScaling(
            kind="yarn", factor=32.0, original_context=64, truncate=False, beta_fast=8.0, beta_slow=2.0,
            attention_factor=1.5,
        ),
    ),
    "llama3": (
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        RopeScaling(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=32),
    ),
    "longrope": (
        {
            "rope_type": "longrope", "short_factor": _SHORT, "long_factor": _LONG,
            "original_max_position_embeddings": 64,
        },
        RopeScaling(
            kind="longrope", factor=2.0, short_factors=tuple(_SHORT), long_factors=tuple(_LONG), original_context=64
        ),
    ),
}  # fmt: skip


def _config(scaling: RopeScaling | None) -> ModelConfig:
    return ModelConfig(
        family="llama", head="causal-lm", vocab_size=64, width=64, layers=1, heads=4, kv_heads=4, head_width=16,
        mlp_width=64, context=128, causal=True, norm="rms", norm_eps=1e-6, norm_position="pre", positions="rotary",
        rope_scaling=scaling, activation="silu", gated_mlp=True,
    )  # fmt: skip


@pytest.mark.parametrize("length", [8, 64, 65, 129, 300])
@pytest.mark.parametrize("name", SCALINGS)
def test_cosines_and_sines(name: str, length: int) -> None:
    theirs, ours = SCALINGS[name]
    kinds = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 128}
    positions = torch.arange(length)
    if name == "longrope":
        config = Phi3Config(
            **kinds, pad_token_id=0, rope_parameters={"rope_theta": 10000.0, **theirs},
            original_max_position_embeddings=64,
        )  # fmt: skip
        reference = Phi3RotaryEmbedding(config)
    else:
        reference = LlamaRotaryEmbedding(LlamaConfig(**kinds, rope_parameters={"rope_theta": 10000.0, **theirs}))
    cosine, sine = reference(torch.zeros(1, length, 64), positions[None])
    ours_cosine, ours_sine = Rotary(_config(ours))(positions, torch.float32)
    ours_cosine, ours_sine = ours_cosine.reshape(length, 8), ours_sine.reshape(length, 8)
    assert torch.allclose(ours_cosine, cosine[0, :, :8], atol=2e-5)
    assert torch.allclose(ours_sine, sine[0, :, :8], atol=2e-5)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_each_row_has_the_frequencies_of_its_own_length(name: str) -> None:
    rotary = Rotary(_config(SCALINGS[name][1]))
    positions = torch.arange(200)
    together, _ = rotary(positions, torch.float32, torch.tensor([200, 60]))
    alone = [rotary(positions[:length], torch.float32)[0] for length in (200, 60)]
    assert torch.equal(together[0], alone[0].reshape(200, 1, 8))
    assert torch.equal(together[1, :60], alone[1].reshape(60, 1, 8))
    assert not torch.allclose(together[0], together[1])


def test_features_past_the_rotated_ones_stay() -> None:
    config = _config(None).model_copy(update={"rotary_share": 0.5})
    x = torch.randn(1, 5, 4, 16)
    turned = rotate(x, *Rotary(config)(torch.arange(5), torch.float32))
    assert torch.equal(turned[..., 8:], x[..., 8:])
    pairs = torch.view_as_complex(torch.stack((x[..., :4], x[..., 4:8]), dim=-1))
    angles = torch.arange(5)[:, None] * 10000.0 ** (-torch.arange(4) / 4)
    expected = pairs * torch.polar(torch.ones(5, 4), angles)[None, :, None, :]
    assert torch.allclose(turned[..., :4], expected.real, atol=1e-5)
    assert torch.allclose(turned[..., 4:8], expected.imag, atol=1e-5)
