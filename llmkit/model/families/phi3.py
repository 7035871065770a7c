"""Phi-3 and Phi-4 (Abdin et al. 2024): Llama with fused projections, rotary shares and LongRoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.model.config import ModelConfig
from llmkit.model.families.base import SCORES, Family, Weight, weights, with_defaults, without
from llmkit.model.families.llama import (
    LLAMA_DEFAULTS,
    LLAMA_KEYS,
    LLAMA_NAMES,
    LLAMA_PARTS,
    decoder_heads,
    read_heads,
)
from llmkit.model.families.local import read_local_layers, with_windows
from llmkit.model.families.rope import RopeNames, read_rope, write_rope

# LongRoPE went by two other names in early releases.
_ROPE = RopeNames(share="partial_rotary_factor", synonyms={"su": "longrope", "yarn": "longrope"}, default_original=4096)


def _read(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    read_heads(settings, values)
    read_rope(settings, values, _ROPE)
    read_local_layers({**settings, "layer_types": None}, values, None, lambda layer: True)


def _write(config: ModelConfig, settings: dict[str, Any]) -> None:
    write_rope(config, settings, _ROPE)
    settings["sliding_window"] = config.window
    scaling, table = config.rope_scaling, settings["rope_scaling"]
    if scaling is not None:
        # Releases before 5 refuse tables with more than they need.
        del table["original_max_position_embeddings"]
        if scaling.factor == max(1.0, config.context / scaling.original_context):
            del table["factor"]
        settings["rope_scaling"] = {"type": table.pop("rope_type"), **table}


PHI3 = Family(
    name="phi3",
    base="Phi3Model",
    architectures=decoder_heads("Phi3", "token-classification"),
    parts=LLAMA_PARTS,
    keys=with_defaults(without(LLAMA_KEYS, "head_width"), context=4096, norm_eps=1e-5),
    options=frozenset({"kv_heads", "rope_theta", "window"}),
    spec_defaults=LLAMA_DEFAULTS,
    complete=with_windows(lambda layer: True),
    weights=(
        Weight(
            tuple(f"blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")),
            ("model.layers.{i}.self_attn.qkv_proj",),
        ),
        Weight(("blocks.{i}.mlp.gate", "blocks.{i}.mlp.up"), ("model.layers.{i}.mlp.gate_up_proj",)),
        *weights({ours: theirs for ours, theirs in LLAMA_NAMES.items() if "_proj" not in theirs}),
        *weights(
            {
                "blocks.{i}.attention.output": "model.layers.{i}.self_attn.o_proj",
                "blocks.{i}.mlp.down": "model.layers.{i}.mlp.down_proj",
            }
        ),
        *SCORES,
    ),
    prefix="model.",
    ignored=("*.rotary_emb.inv_freq",),
    read=_read,
    write=_write,
)
