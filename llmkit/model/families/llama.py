"""Llama 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024): rotary positions, RMS norms before, gated SiLU MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.model.config import ModelConfig
from llmkit.model.families.base import SCORES, Family, Key, weights, width_of_heads


def _read(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    values["kv_heads"] = values["kv_heads"] or values["heads"]
    values["head_width"] = values["head_width"] or width_of_heads(values)
    values["qkv_bias"] = values["output_bias"] = settings.get("attention_bias", False)
    # transformers 5 keeps theta and scaling in one table; earlier releases and most other tools have two keys.
    name = "rope_parameters" if settings.get("rope_parameters") is not None else "rope_scaling"
    scaling = settings.get(name) or {}
    if not isinstance(scaling, dict):
        raise ValueError(f"{name}: {scaling!r} is no table of settings")
    theta = scaling.get("rope_theta", settings.get("rope_theta"))
    values["rope_theta"] = 10000.0 if theta is None else theta
    values["rope_scaling"] = _read_scaling(scaling, name)


def _read_scaling(scaling: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    keys = {"factor": "factor"}
    if kind == "llama3":
        keys |= {
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
            "original_context": "original_max_position_embeddings",
        }
    elif kind != "linear":
        raise ValueError(f"{name}: rotary scaling {kind!r} is not supported, only linear and llama3 are")
    missing = [theirs for theirs in keys.values() if theirs not in scaling]
    if missing:
        raise ValueError(f"{name}: {', '.join(missing)} is missing")
    return {"kind": kind, **{ours: scaling[theirs] for ours, theirs in keys.items()}}


def _write(config: ModelConfig, settings: dict[str, Any]) -> None:
    settings["attention_bias"] = config.qkv_bias
    settings["rope_theta"] = config.rope_theta
    settings["rope_scaling"] = None
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        settings["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            settings["rope_scaling"] |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context,
            }


LLAMA = Family(
    name="llama",
    base="LlamaModel",
    architectures={
        "causal-lm": "LlamaForCausalLM",
        "classification": "LlamaForSequenceClassification",
        "reward": "LlamaForSequenceClassification",
        "token-classification": "LlamaForTokenClassification",
        "question-answering": "LlamaForQuestionAnswering",
    },
    parts={
        "causal": True,
        "norm": "rms",
        "norm_position": "pre",
        "positions": "rotary",
        "gated_mlp": True,
        "scaled_residual_init": True,
    },
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("width", "hidden_size"),
        Key("layers", "num_hidden_layers"),
        Key("heads", "num_attention_heads"),
        Key("kv_heads", "num_key_value_heads", None),
        Key("head_width", "head_dim", None),
        Key("mlp_width", "intermediate_size"),
        Key("context", "max_position_embeddings", 2048),
        Key("norm_eps", "rms_norm_eps", 1e-6),
        Key("activation", "hidden_act", "silu"),
        Key("mlp_bias", "mlp_bias", False),
        Key("tie_embeddings", "tie_word_embeddings", False),
        Key("attention_dropout", "attention_dropout", 0.0),
        # The reference has no dropout but attention's; it carries these two along unread.
        Key("dropout", "resid_pdrop", 0.0),
        Key("embedding_dropout", "embd_pdrop", 0.0),
        Key("init_std", "initializer_range", 0.02),
    ),
    options=frozenset({"kv_heads", "head_width", "rope_theta"}),
    spec_defaults={
        "context": 2048,
        # Two thirds of four times the width, for a third matrix at equal cost (Shazeer 2020), in multiples of 64.
        "mlp_width": lambda width: -(-8 * width // (3 * 64)) * 64,
        "activation": "silu",
        "norm_eps": 1e-5,
    },
    weights=weights(
        {
            "embeddings.token": "model.embed_tokens",
            "blocks.{i}.attention_norm": "model.layers.{i}.input_layernorm",
            "blocks.{i}.attention.query": "model.layers.{i}.self_attn.q_proj",
            "blocks.{i}.attention.key": "model.layers.{i}.self_attn.k_proj",
            "blocks.{i}.attention.value": "model.layers.{i}.self_attn.v_proj",
            "blocks.{i}.attention.output": "model.layers.{i}.self_attn.o_proj",
            "blocks.{i}.mlp_norm": "model.layers.{i}.post_attention_layernorm",
            "blocks.{i}.mlp.gate": "model.layers.{i}.mlp.gate_proj",
            "blocks.{i}.mlp.up": "model.layers.{i}.mlp.up_proj",
            "blocks.{i}.mlp.down": "model.layers.{i}.mlp.down_proj",
            "norm": "model.norm",
            "head.projection": "lm_head",
        }
    )
    + SCORES,
    prefix="model.",
    head_prefixes={"question-answering": "transformer."},
    ignored=("*.rotary_emb.inv_freq",),
    read=_read,
    write=_write,
)
