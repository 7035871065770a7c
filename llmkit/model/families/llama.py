"""Llama 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024): rotary positions, RMS norms before, gated SiLU MLP.

What the many families that follow it share stands here too: keys, names of weights, heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.model.config import Head, ModelConfig
from llmkit.model.families.base import SCORES, Family, Key, weights, width_of_heads
from llmkit.model.families.rope import read_rope, write_rope

LLAMA_PARTS: Mapping[str, Any] = {
    "causal": True,
    "norm": "rms",
    "norm_position": "pre",
    "positions": "rotary",
    "gated_mlp": True,
    "scaled_residual_init": True,
}

LLAMA_KEYS = (
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
    Key("tie_embeddings", "tie_word_embeddings", False),
    Key("attention_dropout", "attention_dropout", 0.0),
    # The reference has no dropout but attention's; it carries these two along unread.
    Key("dropout", "resid_pdrop", 0.0),
    Key("embedding_dropout", "embd_pdrop", 0.0),
    Key("init_std", "initializer_range", 0.02),
)

LLAMA_OPTIONS = frozenset({"kv_heads", "head_width", "rope_theta"})

LLAMA_DEFAULTS: Mapping[str, Any] = {
    "context": 2048,
    # Two thirds of four times the width, for a third matrix at equal cost (Shazeer 2020), in multiples of 64.
    "mlp_width": lambda width: -(-8 * width // (3 * 64)) * 64,
    "activation": "silu",
    "norm_eps": 1e-5,
}

LLAMA_NAMES: Mapping[str, str] = {
    "embeddings.token": "model.embed_tokens",
    "blocks.{i}.attention_norm": "model.layers.{i}.input_layernorm",
    "blocks.{i}.attention.query": "model.layers.{i}.self_attn.q_proj",
    "blocks.{i}.attention.key": "model.layers.{i}.self_attn.k_proj",
    "blocks.{i}.attention.value": "model.layers.{i}.self_attn.v_proj",
    "blocks.{i}.attention.output": "model.layers.{i}.self_attn.o_proj",
    "blocks.{i}.attention.query_norm": "model.layers.{i}.self_attn.q_norm",
    "blocks.{i}.attention.key_norm": "model.layers.{i}.self_attn.k_norm",
    "blocks.{i}.mlp_norm": "model.layers.{i}.post_attention_layernorm",
    "blocks.{i}.mlp.gate": "model.layers.{i}.mlp.gate_proj",
    "blocks.{i}.mlp.up": "model.layers.{i}.mlp.up_proj",
    "blocks.{i}.mlp.down": "model.layers.{i}.mlp.down_proj",
    "norm": "model.norm",
    "head.projection": "lm_head",
}


_ENDINGS: Mapping[Head, str] = {
    "causal-lm": "ForCausalLM",
    "classification": "ForSequenceClassification",
    "reward": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
}


def decoder_heads(name: str, *more: Head) -> dict[Head, str]:
    """The reference's classes of a decoder, whose names begin with `name`; `more` heads beyond those that all have."""
    heads: tuple[Head, ...] = ("causal-lm", "classification", "reward", *more)
    return {head: name + _ENDINGS[head] for head in heads}


def read_llama(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    """What Llama's keys leave to compute; one setting says whether attention has biases."""
    read_heads(settings, values)
    values["qkv_bias"] = values["output_bias"] = settings.get("attention_bias", False)
    read_rope(settings, values)


def read_heads(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    """As many key/value heads as heads, and heads that split the width, where config.json does not say."""
    values["kv_heads"] = values["kv_heads"] or values["heads"]
    values["head_width"] = values.get("head_width") or width_of_heads(values)


def write_llama(config: ModelConfig, settings: dict[str, Any]) -> None:
    """What `read_llama` reads."""
    settings["attention_bias"] = config.qkv_bias
    write_rope(config, settings)


LLAMA = Family(
    name="llama",
    base="LlamaModel",
    architectures=decoder_heads("Llama", "token-classification", "question-answering"),
    parts=LLAMA_PARTS,
    keys=(*LLAMA_KEYS, Key("mlp_bias", "mlp_bias", False)),
    options=LLAMA_OPTIONS,
    spec_defaults=LLAMA_DEFAULTS,
    weights=weights(LLAMA_NAMES) + SCORES,
    prefix="model.",
    head_prefixes={"question-answering": "transformer."},
    ignored=("*.rotary_emb.inv_freq",),
    read=read_llama,
    write=write_llama,
)
