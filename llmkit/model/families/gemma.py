"""Gemma 1 and 2 (Gemma Team 2024): scaled embeddings, norms that multiply by 1 + weight, gated tanh-GELU MLP.

Gemma 2 adds norms after the branches, soft-capped scores and logits, and a window in every other layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.model.config import ModelConfig
from llmkit.model.families.base import SCORES, Family, Key, weights, with_defaults, without
from llmkit.model.families.llama import (
    LLAMA_DEFAULTS,
    LLAMA_KEYS,
    LLAMA_NAMES,
    LLAMA_OPTIONS,
    LLAMA_PARTS,
    decoder_heads,
    read_llama,
    write_llama,
)
from llmkit.model.families.local import read_local_layers, with_windows, write_local_layers

GEMMA_PARTS = {**LLAMA_PARTS, "norm_offset": True, "scale_embeddings": True}

GEMMA_DEFAULTS = {**LLAMA_DEFAULTS, "activation": "gelu_tanh", "norm_eps": 1e-6}

# The reference's activation goes by two names, one of which says "gelu" in early files.
_COMMON = without(LLAMA_KEYS, "activation")

GEMMA2_KEYS = (
    *with_defaults(_COMMON, kv_heads=4, head_width=256, context=8192, tie_embeddings=True),
    Key("activation", "hidden_activation", "gelu_pytorch_tanh"),
    Key("score_width", "query_pre_attn_scalar", 256),
)

GEMMA2_NAMES = {
    **LLAMA_NAMES,
    "blocks.{i}.attention_output_norm": "model.layers.{i}.post_attention_layernorm",
    "blocks.{i}.mlp_norm": "model.layers.{i}.pre_feedforward_layernorm",
    "blocks.{i}.mlp_output_norm": "model.layers.{i}.post_feedforward_layernorm",
}


def _read(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    read_llama(settings, values)
    # The reference reads "gelu" as its tanh approximation, which the models were trained with.
    values["activation"] = "gelu_tanh" if values["activation"] == "gelu" else values["activation"]


def write_gemma(config: ModelConfig, settings: dict[str, Any]) -> None:
    """What all Gemmas have; the activation under the one name that servers accept."""
    write_llama(config, settings)
    if config.activation == "gelu_tanh":
        settings["hidden_act"] = settings["hidden_activation"] = "gelu_pytorch_tanh"


def read_scores(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    """What scores are divided by the root of, by itself where it is not the head's width."""
    values["score_width"] = None if values["score_width"] == values["head_width"] else values["score_width"]


def write_scores(config: ModelConfig, settings: dict[str, Any]) -> None:
    """What `read_scores` reads, as a whole number where it is one."""
    width = config.score_width or config.head_width
    settings["query_pre_attn_scalar"] = int(width) if width == int(width) else width


def _read2(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    read_llama(settings, values)
    read_scores(settings, values)
    read_local_layers(settings, values, 4096, lambda layer: layer % 2 == 0)
    values["score_softcap"] = settings.get("attn_logit_softcapping", 50.0)
    values["logit_softcap"] = settings.get("final_logit_softcapping", 30.0)


def _write2(config: ModelConfig, settings: dict[str, Any]) -> None:
    write_gemma(config, settings)
    write_scores(config, settings)
    write_local_layers(config, settings)
    settings["attn_logit_softcapping"] = config.score_softcap
    settings["final_logit_softcapping"] = config.logit_softcap


GEMMA = Family(
    name="gemma",
    base="GemmaModel",
    architectures=decoder_heads("Gemma", "token-classification"),
    parts=GEMMA_PARTS,
    keys=(
        *with_defaults(_COMMON, kv_heads=16, head_width=256, context=8192, tie_embeddings=True),
        Key("activation", "hidden_act", "gelu_pytorch_tanh"),
    ),
    options=LLAMA_OPTIONS,
    spec_defaults=GEMMA_DEFAULTS,
    weights=weights(LLAMA_NAMES) + SCORES,
    prefix="model.",
    only={"use_bidirectional_attention": False},
    ignored=("*.rotary_emb.inv_freq",),
    read=_read,
    write=write_gemma,
)

GEMMA2 = Family(
    name="gemma2",
    base="Gemma2Model",
    architectures=decoder_heads("Gemma2", "token-classification"),
    parts={**GEMMA_PARTS, "norm_position": "sandwich"},
    keys=GEMMA2_KEYS,
    options=LLAMA_OPTIONS | {"window", "score_softcap", "logit_softcap"},
    spec_defaults={**GEMMA_DEFAULTS, "window": 1024, "score_softcap": 50.0, "logit_softcap": 30.0},
    complete=with_windows(lambda layer: layer % 2 == 0),
    weights=weights(GEMMA2_NAMES) + SCORES,
    prefix="model.",
    only={"use_bidirectional_attention": False},
    read=_read2,
    write=_write2,
)
