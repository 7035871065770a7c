"""config.json as published before transformers 5, and what is refused in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llmkit.errors import ModelError
from llmkit.model import families
from llmkit.model.config import ModelConfig
from llmkit.model.facts import read_stored
from llmkit.model.families import FAMILIES
from llmkit.model.initialization import build
from llmkit.model.load import load_model
from llmkit.model.save import save_model

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0",
    "use_cache": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What the published files of each family say, but for sizes; keys left out there are left out here.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-2": {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "pretraining_tp": 1,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    },
    "Llama-3.2": {
        "model_type": "llama",
        "max_position_embeddings": 131072,
        "head_dim": 8,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "tie_word_embeddings": True,
        "eos_token_id": [3, 4, 5],
    },
    "vicuna-16k": {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    "Yarn-Llama-2": {
        "model_type": "llama",
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
            "finetuned": True,
        },
    },
    "Mistral-v0.1": {"model_type": "mistral", "max_position_embeddings": 32768, "sliding_window": 4096},
    "Mistral-v0.2": {
        "model_type": "mistral",
        "max_position_embeddings": 32768,
        "sliding_window": None,
        "rope_theta": 1e6,
    },
    "Qwen2.5": {
        "model_type": "qwen2",
        "max_position_embeddings": 32768,
        "max_window_layers": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
    "Qwen2-windows": {
        "model_type": "qwen2",
        "max_window_layers": 2,
        "sliding_window": 8,
        "use_sliding_window": True,
    },
    "Qwen3": {
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 16,
        "max_position_embeddings": 40960,
        "max_window_layers": 4,
        "rope_theta": 1000000,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "gemma-2b": {"model_type": "gemma", "head_dim": 12, "hidden_act": "gelu", "rope_theta": 10000.0},
    "gemma-2-2b": {
        "model_type": "gemma2",
        "head_dim": 12,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 12,
        "sliding_window": 8,
    },
    "gemma-3-1b": {
        "model_type": "gemma3_text",
        "head_dim": 12,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "query_pre_attn_scalar": 12,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 8,
        "sliding_window_pattern": 3,
    },
    "gemma-3-long": {
        "model_type": "gemma3_text",
        "head_dim": 12,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 8,
    },
    "Phi-3-4k": {
        "model_type": "phi3",
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rope_scaling": None,
        "sliding_window": 2047,
        "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
    },
    "Phi-3-128k": {
        "model_type": "phi3",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]},
        "sliding_window": 262144,
    },
    "Phi-4-mini": {
        "model_type": "phi3",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.2], "long_factor": [1.0, 2.0, 3.0]},
        "sliding_window": 262144,
        "tie_word_embeddings": True,
    },
    "OLMo-2": {"model_type": "olmo2", "max_position_embeddings": 4096, "rms_norm_eps": 1e-06, "rope_theta": 500000},
    "pythia": {
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
    },
    "gpt-neox": {"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 50000, "attention_bias": False},
}


def _read(path: Path, settings: dict[str, Any]) -> ModelConfig:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(settings))
    return read_stored(path, head=None if "architectures" in settings else "causal-lm").config


def _settings(name: str) -> dict[str, Any]:
    settings = {**SIZES, **PUBLISHED[name]}
    family = FAMILIES[settings["model_type"]]
    return {**settings, "architectures": [family.architectures["causal-lm"]]}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_understood_as_transformers_understands_them(name: str, tmp_path: Path) -> None:
    config = _read(tmp_path, _settings(name))
    model = build(config, seed=0).eval()
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "again")
    assert read_stored(tmp_path / "again").config == config

    save_model(model, tmp_path / "ours")
    assert read_stored(tmp_path / "ours").config == config
    reference = transformers.AutoModelForCausalLM.from_config(theirs, attn_implementation="eager").float().eval()
    written = type(reference).from_pretrained(tmp_path / "ours", attn_implementation="eager")
    reference.load_state_dict(written.state_dict())
    input_ids = torch.randint(0, 61, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, expected, again = model(input_ids), reference(input_ids).logits, written(input_ids).logits
    assert torch.allclose(ours, expected, atol=1e-4 * float(expected.abs().max()))
    assert torch.allclose(ours, again, atol=1e-4 * float(expected.abs().max()))


def test_what_published_settings_mean(tmp_path: Path) -> None:
    """Values known from the models' papers and cards, not from the reference's code."""
    known = {
        "Mistral-v0.1": {"window": 4096, "local_layers": (0, 1, 2, 3)},
        "Mistral-v0.2": {"window": None, "local_layers": (), "rope_theta": 1e6},
        "Qwen2.5": {"window": None, "local_layers": (), "qkv_bias": True, "output_bias": False},
        "Qwen2-windows": {"window": 8, "local_layers": (2, 3)},
        "Qwen3": {"qk_norm": "head", "qkv_bias": False, "head_width": 16},
        "gemma-2b": {"activation": "gelu_tanh", "scale_embeddings": True, "tie_embeddings": True},
        "gemma-2-2b": {"local_layers": (0, 2), "score_softcap": 50.0, "logit_softcap": 30.0, "context": 8192},
        "gemma-3-1b": {"local_layers": (0, 1, 3), "rope_theta": 1e6, "local_rope_theta": 1e4, "logit_softcap": None},
        "Phi-4-mini": {"rotary_share": 0.75, "rotary_width": 6, "window": 262144},
        "OLMo-2": {"norm_position": "output", "qk_norm": "projection", "rope_theta": 500000},
        "pythia": {"parallel_residual": True, "rotary_width": 2, "rotary_share": 0.25},
        "gpt-neox": {"rope_theta": 50000, "qkv_bias": False, "rotary_width": 4},
    }
    for name, expected in known.items():
        config = _read(tmp_path, _settings(name))
        assert {key: getattr(config, key) for key in expected} == expected, name


def test_early_names_of_longrope(tmp_path: Path) -> None:
    settings = _settings("Phi-3-128k")
    config = _read(tmp_path, settings)
    for kind in ("su", "yarn"):
        assert _read(tmp_path, {**settings, "rope_scaling": {**settings["rope_scaling"], "type": kind}}) == config


def test_yarn_with_two_scales_has_their_quotient_as_its_factor(tmp_path: Path) -> None:
    """DeepSeek's form: (0.1 x mscale x ln 40 + 1) / (0.1 x mscale_all_dim x ln 40 + 1)."""
    table = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
    settings = {**_settings("Llama-2"), "max_position_embeddings": 163840}
    config = _read(tmp_path, {**settings, "rope_scaling": {**table, "mscale": 1.0, "mscale_all_dim": 0.5}})
    assert config.rope_scaling is not None
    assert config.rope_scaling.attention_factor == pytest.approx(1.3688879 / 1.1844440, rel=1e-6)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "kind": ("Llama-2", {"rope_scaling": {"rope_type": "proportional", "factor": 2.0}}, "'proportional' is not supp"),
    "no factor": ("Llama-2", {"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
    "no table": ("Llama-2", {"rope_scaling": "linear"}, "no table"),
    "kind of kinds": ("Llama-2", {"rope_scaling": {"rope_type": ["linear"]}}, "not supported"),
    "partial": ("Llama-2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "by layer": ("Llama-2", {"rope_parameters": {"full_attention": {"rope_theta": 2.0}}}, "each kind of layer"),
    "original": ("Llama-3.2", {"original_max_position_embeddings": "many"}, "no number of tokens"),
    "too few": ("Phi-4-mini", {"partial_rotary_factor": 0.5}, "longrope needs 2 short_factors"),
    "local scaling": (
        "gemma-3-1b",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "local layers",
    ),
    "window": ("Mistral-v0.1", {"sliding_window": "wide"}, "no whole number"),
    "mixed": ("Mistral-v0.1", {"layer_types": ["full_attention"] + ["sliding_attention"] * 3}, "of one kind"),
    "chunks": ("Qwen2.5", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
    "too many kinds": ("gemma-2-2b", {"layer_types": ["full_attention"] * 5}, "each of the 4 layers"),
    "pattern": ("gemma-3-1b", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
    "layers": ("gemma-2-2b", {"num_hidden_layers": 10**12}, "more than"),
    "both sides": ("gemma-3-1b", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "caps": ("gemma-3-1b", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    "heads": ("pythia", {"num_attention_heads": 5}, "does not divide"),
    "remainder": ("OLMo-2", {"num_attention_heads": 0}, "does not divide"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_transformer_does_not_compute_is_refused(name: str, tmp_path: Path) -> None:
    published, changes, message = REFUSED[name]
    with pytest.raises(ModelError, match=message) as caught:
        _read(tmp_path, {**_settings(published), **changes})
    assert caught.value.where == str(tmp_path / "config.json")


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10**13) | st.floats() | st.text(max_size=3) | st.just("yarn"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "rope_theta", "full_attention", "x"]), inner)
    ),
    max_leaves=4,
)
_KEYS = (
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "layer_types",
    "sliding_window_pattern",
    "head_dim",
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(published=st.sampled_from(sorted(PUBLISHED)), junk=_JUNK, data=st.data())
def test_junk_in_a_config_is_refused_in_words(published: str, junk: Any, data: st.DataObject, tmp_path: Path) -> None:
    stored = _settings(published)
    name = data.draw(st.sampled_from([*stored, *_KEYS]))
    try:
        _read(tmp_path, {**stored, name: junk})
    except ModelError as refused:
        assert str(refused)


@pytest.mark.parametrize("names", ["published", "of the class"])
def test_opens_the_text_model_of_a_multimodal_gemma3(names: str, tmp_path: Path) -> None:
    text = {
        **{name: SIZES[name] for name in SIZES if name != "torch_dtype"},
        "num_hidden_layers": 2,
        "head_dim": 12,
        "sliding_window": 8,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 28, "patch_size": 14, "vocab_size": 61}
    settings = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    reference = transformers.Gemma3ForConditionalGeneration(settings).eval()
    reference.save_pretrained(tmp_path)
    if names == "of the class":
        state = {name: tensor for name, tensor in reference.state_dict().items() if name != "lm_head.weight"}
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    beginning = {"published": "language_model.model.", "of the class": "model.language_model."}[names]
    assert f"{beginning}norm.weight" in load_file(tmp_path / "model.safetensors")
    model = load_model(tmp_path)
    assert model.config.family == "gemma3_text"
    input_ids = torch.randint(0, 61, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference(input_ids=input_ids).logits
        assert torch.allclose(model(input_ids), expected, atol=1e-4 * float(expected.abs().max()))
        save_model(model, tmp_path / "text")
        alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text")
        assert type(alone).__name__ == "Gemma3ForCausalLM"
        assert torch.allclose(alone(input_ids).logits, expected, atol=1e-4 * float(expected.abs().max()))


def test_the_worked_example_of_the_docs_is_the_module_and_short() -> None:
    root = Path(families.__file__).parents[3]
    module = Path(families.__file__).with_name("phi3.py").read_text()
    page = (root / "docs" / "families.md").read_text()
    assert module in page
    assert len(module.splitlines()) < 150
    assert all(f"`{name}`" in page for name in FAMILIES)
