"""The architecture: what is refused, and what it costs, against counts of the built model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from llmkit.model.config import ModelConfig, RopeScaling
from llmkit.model.families import FAMILIES
from llmkit.model.initialization import build
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec

SHAPES: list[dict[str, Any]] = [
    {"family": "llama", "layers": 2, "width": 64},
    {"family": "llama", "layers": 3, "width": 48, "heads": 6, "kv_heads": 2, "mlp_width": 100, "tie_embeddings": False},
    {"family": "llama", "layers": 1, "width": 32, "heads": 2, "head_width": 24},
    {"family": "mistral", "layers": 2, "width": 64, "window": 40},
    {"family": "qwen2", "layers": 2, "width": 64},
    {"family": "qwen3", "layers": 2, "width": 64, "kv_heads": 2, "heads": 4},
    {"family": "gemma", "layers": 2, "width": 64, "heads": 4, "head_width": 24},
    {"family": "gemma2", "layers": 3, "width": 64, "window": 40},
    {"family": "gemma3_text", "layers": 7, "width": 64, "window": 40},
    {"family": "phi3", "layers": 2, "width": 64},
    {"family": "olmo2", "layers": 2, "width": 64, "kv_heads": 2, "heads": 4},
    {"family": "gpt_neox", "layers": 2, "width": 64},
    {"family": "mixtral", "layers": 2, "width": 32, "experts": 5, "experts_per_token": 3},
    {"family": "qwen3_moe", "layers": 2, "width": 32, "kv_heads": 1, "head_width": 20, "expert_width": 7},
    {"family": "gpt_oss", "layers": 2, "width": 32, "experts": 6, "tie_embeddings": False},
    {"family": "gpt2", "layers": 2, "width": 64, "context": 40},
    {"family": "gpt2", "layers": 1, "width": 60, "heads": 3, "tie_embeddings": False, "mlp_width": 90},
    {"family": "bert", "layers": 2, "width": 64, "context": 40},
    {"family": "bert", "layers": 1, "width": 60, "heads": 3, "tie_embeddings": False, "mlp_width": 90},
    {"family": "roberta", "layers": 2, "width": 64, "context": 40},
    {"family": "distilbert", "layers": 2, "width": 64, "context": 40, "tie_embeddings": False},
    {"family": "modernbert", "layers": 4, "width": 64},
]


def _variants() -> list[ModelConfig]:
    configs: list[ModelConfig] = []
    for shape in SHAPES:
        config = ModelSpec(**shape).resolve(97, pad_id=0)
        configs += [config, config.with_head("reward"), config.with_head("classification", ("a", "b", "c"))]
        configs += [config.with_head("token-classification", ("a", "b", "c")), config.with_head("question-answering")]
        configs += [config.with_head("embedding")]
    configs.append(configs[-1].model_copy(update={"transform_bias": True, "norm_bias": True, "head": "masked-lm"}))
    biased = configs[0].model_copy(update={"qkv_bias": True, "output_bias": True, "mlp_bias": True})
    mixed = next(config for config in configs if config.family == "qwen3_moe").model_copy(update={"dense_layers": (1,)})
    return [*configs, biased, mixed]


@pytest.mark.parametrize("config", _variants(), ids=lambda config: f"{config.family}-{config.head}")
def test_parameter_count_is_that_of_the_module(config: ModelConfig) -> None:
    model = build(config, seed=0)
    assert config.parameter_count() == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("config", _variants(), ids=lambda config: f"{config.family}-{config.head}")
def test_flops_are_those_that_torch_counts(config: ModelConfig) -> None:
    model, length = build(config, seed=0), 24
    input_ids = torch.zeros((1, length), dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            scores = model(input_ids)
        with FlopCounterMode(display=False) as backward:
            scores.sum().backward()
    assert config.flops_per_sequence(length, backward=False) == forward.get_total_flops()
    assert config.flops_per_sequence(length) == forward.get_total_flops() + backward.get_total_flops()
    assert config.flops_per_token(length) * length == config.flops_per_sequence(length)


def test_parameters_that_work_for_a_token_are_those_with_a_gradient() -> None:
    for config in _variants():
        model = build(config, seed=0)
        model(torch.zeros((1, 1), dtype=torch.int64)).sum().backward()
        experts = config.experts or 1
        active = 0
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            routed = ".experts." in name
            # A bias of an expert has a gradient where its token has one.
            used = int(parameter.grad.view(experts, -1).any(dim=1).sum()) if routed else experts
            active += parameter.numel() * used // experts
        assert config.active_parameter_count() == active


def test_flops_of_a_known_model() -> None:
    """GPT-2 small: 6 x (85M in blocks + 38.6M in the tied projection) + 12 x 12 x 768 x 1024 for attention."""
    config = ModelSpec(family="gpt2", layers=12, width=768).resolve(50257, pad_id=None)
    assert config.parameter_count() == 124_439_808
    matrices = 12 * (4 * 768**2 + 8 * 768**2) + 768 * 50257
    assert config.flops_per_token(1024) == 6 * matrices + 12 * 12 * 768 * 1024
    assert config.cache_bytes_per_token(2) == 2 * 12 * 768 * 2


def test_parameters_of_published_models() -> None:
    smol = ModelSpec(family="llama", layers=30, width=576, heads=9, kv_heads=3, mlp_width=1536)
    assert smol.resolve(49152, pad_id=None).parameter_count() == 134_515_008
    llama = ModelSpec(family="llama", layers=32, width=4096, heads=32, mlp_width=11008, tie_embeddings=False)
    assert llama.resolve(32000, pad_id=None).parameter_count() == 6_738_415_616
    gemma2 = ModelSpec(
        family="gemma2", layers=26, width=2304, heads=8, kv_heads=4, head_width=256, mlp_width=9216, context=8192
    )
    assert gemma2.resolve(256000, pad_id=0).parameter_count() == 2_614_341_888
    pythia = ModelSpec(family="gpt_neox", layers=12, width=768, tie_embeddings=False)
    assert pythia.resolve(50304, pad_id=0).parameter_count() == 162_322_944
    mixtral = ModelSpec(
        family="mixtral", layers=32, width=4096, heads=32, kv_heads=8, expert_width=14336, tie_embeddings=False
    ).resolve(32000, pad_id=None)
    assert mixtral.parameter_count() == 46_702_792_704
    assert mixtral.active_parameter_count() == 12_879_925_248
    bert = ModelSpec(family="bert", layers=12, width=768).resolve(30522, pad_id=0)
    assert bert.parameter_count() == 109_514_298
    roberta = ModelSpec(family="roberta", layers=12, width=768).resolve(50265, pad_id=1)
    assert roberta.parameter_count() == 124_697_433
    distilbert = ModelSpec(family="distilbert", layers=6, width=768).resolve(30522, pad_id=0)
    assert distilbert.parameter_count() == 66_985_530
    modernbert = ModelSpec(family="modernbert", layers=22, width=768).resolve(50368, pad_id=50283)
    assert modernbert.parameter_count() == 149_655_232


@pytest.mark.parametrize(("layers", "experts", "total", "active"), [(24, 32, 20.91, 3.61), (36, 128, 116.83, 5.13)])
def test_parameters_of_gpt_oss(layers: int, experts: int, total: float, active: float) -> None:
    """In billions, as its model card has them; among the active ones it does not count the token vectors."""
    shape = {"layers": layers, "width": 2880, "heads": 64, "kv_heads": 8, "head_width": 64, "experts": experts}
    spec = ModelSpec(family="gpt_oss", tie_embeddings=False, **shape)  # type: ignore[arg-type]
    config = spec.resolve(201088, pad_id=None)
    assert config.parameter_count() / 1e9 == pytest.approx(total, abs=0.006)
    assert (config.active_parameter_count() - 201088 * 2880) / 1e9 == pytest.approx(active, abs=0.006)


def test_defaults_of_each_family() -> None:
    llama = ModelSpec(family="llama", layers=6, width=256).resolve(4096, pad_id=0)
    assert (llama.heads, llama.kv_heads, llama.head_width, llama.mlp_width, llama.context) == (4, 4, 64, 704, 2048)
    gpt2 = ModelSpec(family="gpt2", layers=6, width=96).resolve(4096, pad_id=0)
    assert (gpt2.heads, gpt2.mlp_width, gpt2.context, gpt2.qkv_bias) == (3, 384, 1024, True)
    gemma3 = ModelSpec(family="gemma3_text", layers=8, width=256).resolve(4096, pad_id=0)
    assert (gemma3.window, gemma3.local_layers) == (512, (0, 1, 2, 3, 4, 6, 7))
    assert (gemma3.rope_theta, gemma3.local_rope_theta, gemma3.activation) == (1_000_000, 10_000, "gelu_tanh")
    gemma2 = ModelSpec(family="gemma2", layers=5, width=256).resolve(4096, pad_id=0)
    assert (gemma2.local_layers, gemma2.score_softcap, gemma2.logit_softcap) == ((0, 2, 4), 50, 30)
    mistral = ModelSpec(family="mistral", layers=2, width=256).resolve(4096, pad_id=0)
    assert (mistral.window, mistral.local_layers) == (1024, (0, 1))
    phi3 = ModelSpec(family="phi3", layers=2, width=256).resolve(4096, pad_id=0)
    assert (phi3.window, phi3.local_layers) == (None, ())
    pythia = ModelSpec(family="gpt_neox", layers=2, width=256).resolve(4096, pad_id=0)
    assert (pythia.rotary_share, pythia.parallel_residual, pythia.mlp_width) == (0.25, True, 1024)
    bert = ModelSpec(family="bert", layers=6, width=256, dropout=0.1).resolve(4096, pad_id=0)
    assert (bert.head, bert.causal, bert.token_types, bert.head_dropout) == ("masked-lm", False, 2, 0.1)
    roberta = ModelSpec(family="roberta", layers=6, width=256).resolve(4096, pad_id=3)
    assert (roberta.context, roberta.position_offset, roberta.token_types) == (512, 4, 1)
    modern = ModelSpec(family="modernbert", layers=5, width=256).resolve(4096, pad_id=0)
    assert (modern.window, modern.local_layers) == (64, (1, 2, 4))
    assert (modern.rope_theta, modern.local_rope_theta) == (160_000, 10_000)


REFUSED = [
    ({"family": "lama"}, "family", "the nearest is llama"),
    ({"family": "brt"}, "family", "the nearest is bert"),
    ({"family": 7}, "family", "string"),
    ({"heads": 7}, "heads", "7 heads do not divide width 256; the nearest that does is 8"),
    ({"width": 250}, "heads", "give the number of heads"),
    ({"heads": 8, "kv_heads": 3}, "kv_heads", "3 kv_heads do not divide 8 heads; the nearest is 2"),
    ({"width": 33, "heads": 11}, "head_width", "head width of 3 is odd"),
    ({"head_width": 7}, "head_width", "head width of 7 is odd"),
    ({"family": "gpt2", "kv_heads": 2}, "kv_heads", "family gpt2 has no kv_heads"),
    ({"family": "llama", "window": 5}, "window", "family llama has no window"),
    ({"family": "bert", "rope_theta": 5.0}, "rope_theta", "family bert has no rope_theta"),
    ({"experts": 4}, "experts", "family llama has no experts"),
    ({"family": "mixtral", "mlp_width": 64}, "mlp_width", "family mixtral has no mlp_width"),
    ({"family": "mixtral", "experts": 4, "experts_per_token": 5}, "experts_per_token", "through 5 of 4 experts"),
    ({"family": "qwen3_moe", "experts": 3}, "experts_per_token", "through 4 of 3 experts"),
    ({"layers": 0}, "layers", "greater than or equal to 1"),
    ({"dropout": 1.0}, "dropout", "less than 1"),
    ({"rope_theta": float("nan")}, "rope_theta", "finite"),
    ({"depth": 3}, "depth", "not permitted"),
]


@pytest.mark.parametrize(("change", "field", "message"), REFUSED, ids=str)
def test_impossible_specs_are_refused_at_their_field(change: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelSpec.model_validate({"family": "llama", "layers": 2, "width": 256, **change})
    (error,) = caught.value.errors()
    assert error["loc"] == (field,)
    assert message in error["msg"]


def test_missing_fields_are_named_once() -> None:
    with pytest.raises(ValidationError) as caught:
        ModelSpec.model_validate({"family": "llama"})
    assert {error["loc"] for error in caught.value.errors()} == {("layers",), ("width",)}


def test_special_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[50\] lie outside the vocabulary of 50"):
        ModelSpec(family="llama", layers=1, width=32).resolve(50, pad_id=0, eos_ids=(50,))


@pytest.mark.parametrize(
    ("family", "head", "labels", "message"),
    [
        ("bert", "causal-lm", (), "no causal-lm head"),
        ("gpt2", "masked-lm", (), "no masked-lm head"),
        ("gpt2", "classification", ("one",), "at least two labels"),
        ("gpt2", "classification", ("one", "one"), "differ"),
        ("llama", "reward", ("good",), "has no labels"),
    ],
)
def test_impossible_heads_are_refused(family: str, head: Any, labels: tuple[str, ...], message: str) -> None:
    config = ModelSpec(family=family, layers=1, width=32).resolve(50, pad_id=0)
    with pytest.raises(ValueError, match=message):
        config.with_head(head, labels)


def test_llama3_scaling_needs_an_ordered_band() -> None:
    with pytest.raises(ValidationError, match="below high_freq_factor"):
        RopeScaling(kind="llama3", factor=2, low_freq_factor=4, high_freq_factor=4, original_context=16)


@given(
    width=st.integers(1, 300),
    heads=st.none() | st.integers(1, 20),
    kv_heads=st.none() | st.integers(1, 20),
    head_width=st.none() | st.integers(1, 40),
    family=st.sampled_from(sorted(FAMILIES)),
)
def test_what_a_spec_accepts_resolves(
    width: int, heads: int | None, kv_heads: int | None, head_width: int | None, family: str
) -> None:
    try:
        spec = ModelSpec(family=family, layers=1, width=width, heads=heads, kv_heads=kv_heads, head_width=head_width)
    except ValidationError:
        return
    config = spec.resolve(10, pad_id=0)
    assert ModelConfig.model_validate(config.model_dump()) == config


def test_config_and_facts_load_without_torch() -> None:
    code = (
        "import sys, llmkit.model.spec, llmkit.model.facts, llmkit.model.sampling;"
        "sys.exit(bool({'torch', 'numpy', 'safetensors'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_soft_caps_are_settings_of_the_family_that_has_them(tmp_path: Path) -> None:
    shape = {"family": "gemma2", "layers": 2, "width": 64, "window": 40, "context": 64, "qk_norm": False}
    spec = ModelSpec.model_validate({**shape, "score_softcap": 20.0, "logit_softcap": 15.0})
    model = build(spec.resolve(100, pad_id=0), seed=1)
    save_model(model, tmp_path / "model")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    assert reference.config.attn_logit_softcapping == 20.0
    assert reference.config.final_logit_softcapping == 15.0
    ids = torch.arange(1, 50)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids), reference(ids).logits, atol=1e-5)
    with pytest.raises(ValidationError, match="take one that has: gemma2"):
        ModelSpec.model_validate({**shape, "family": "llama", "window": None, "logit_softcap": 15.0})


def test_norms_of_queries_and_keys_come_with_the_family() -> None:
    shape = {"layers": 2, "width": 64}
    assert (
        ModelSpec.model_validate({**shape, "family": "qwen3", "qk_norm": True}).resolve(9, pad_id=0).qk_norm == "head"
    )
    with pytest.raises(ValidationError, match="these have: qwen3, "):
        ModelSpec.model_validate({**shape, "family": "llama", "qk_norm": True})
    with pytest.raises(ValidationError, match="always has"):
        ModelSpec.model_validate({**shape, "family": "olmo2", "qk_norm": False})
