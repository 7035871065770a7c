"""OLMo 2 (OLMo Team 2025): Llama with norms after the branches and over whole queries and keys."""

from __future__ import annotations

from llmkit.model.families.base import SCORES, Family, weights, with_defaults, without
from llmkit.model.families.llama import (
    LLAMA_DEFAULTS,
    LLAMA_KEYS,
    LLAMA_NAMES,
    LLAMA_PARTS,
    decoder_heads,
    read_llama,
    write_llama,
)

_UNUSED = ("blocks.{i}.attention_norm", "blocks.{i}.mlp_norm")
_NAMES = {
    **{ours: theirs for ours, theirs in LLAMA_NAMES.items() if ours not in _UNUSED},
    "blocks.{i}.attention_output_norm": "model.layers.{i}.post_attention_layernorm",
    "blocks.{i}.mlp_output_norm": "model.layers.{i}.post_feedforward_layernorm",
}

OLMO2 = Family(
    name="olmo2",
    base="Olmo2Model",
    architectures=decoder_heads("Olmo2"),
    parts={**LLAMA_PARTS, "norm_position": "output", "qk_norm": "projection"},
    keys=with_defaults(without(LLAMA_KEYS, "head_width"), norm_eps=1e-5),
    options=frozenset({"kv_heads", "rope_theta"}),
    spec_defaults={**LLAMA_DEFAULTS, "norm_eps": 1e-6, "rope_theta": 500_000.0},
    weights=weights(_NAMES) + SCORES,
    prefix="model.",
    read=read_llama,
    write=write_llama,
)
