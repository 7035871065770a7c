"""gpt-oss (OpenAI 2025): routed experts with biases and a clamped SwiGLU, attention with sinks, a window in every other
layer. Published checkpoints hold the experts in MXFP4, which is read as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.model.config import ModelConfig
from llmkit.model.families.base import SCORES, Family, Key, Weight, weights, with_defaults, without
from llmkit.model.families.llama import (
    LLAMA_DEFAULTS,
    LLAMA_KEYS,
    LLAMA_NAMES,
    LLAMA_OPTIONS,
    LLAMA_PARTS,
    decoder_heads,
    read_heads,
)
from llmkit.model.families.local import read_local_layers, with_windows, write_local_layers
from llmkit.model.families.mixtral import (
    EXPERT_OPTIONS,
    ROUTER_LOSS_WEIGHT,
    read_router_loss,
    without_dense_layers,
    write_router_loss,
)
from llmkit.model.families.rope import RopeNames, read_rope, write_rope

_ROPE = RopeNames(default_theta=150_000.0)
_DEFAULT_SCALING = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}


def _is_local(layer: int) -> bool:
    return layer % 2 == 0


def _complete(values: dict[str, Any]) -> None:
    without_dense_layers(values)
    with_windows(_is_local)(values)


def _read(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    read_heads(settings, values)
    if not settings.get("rope_parameters") and not settings.get("rope_scaling"):
        settings = {**settings, "rope_scaling": _DEFAULT_SCALING}
    read_rope(settings, values, _ROPE)
    read_local_layers(settings, values, 128, _is_local)
    bias = settings.get("attention_bias")
    values["qkv_bias"] = values["output_bias"] = True if bias is None else bias
    read_router_loss(settings, values)
    without_dense_layers(values)


def _write(config: ModelConfig, settings: dict[str, Any]) -> None:
    write_rope(config, settings, _ROPE)
    if config.rope_scaling is None:
        settings["rope_scaling"] = {"rope_type": "default"}
    write_local_layers(config, settings)
    write_router_loss(config, settings)
    settings["attention_bias"] = config.qkv_bias


_OURS, _THEIRS = "blocks.{i}.mlp.experts", "model.layers.{i}.mlp.experts"


def _both(kind: str) -> tuple[str, str]:
    return f"{_OURS}.gate.{kind}", f"{_OURS}.up.{kind}"


GPT_OSS = Family(
    name="gpt_oss",
    base="GptOssModel",
    architectures=decoder_heads("GptOss", "token-classification"),
    parts={
        **LLAMA_PARTS,
        "activation": "clamped_swiglu",
        "attention_sinks": True,
        "expert_bias": True,
        "qkv_bias": True,
        "output_bias": True,
    },
    keys=(
        *with_defaults(
            without(LLAMA_KEYS, "mlp_width", "activation"), kv_heads=8, head_width=64, context=131072, norm_eps=1e-5
        ),
        Key("expert_width", "intermediate_size", 2880),
        Key("experts", "num_local_experts", 128),
        Key("experts_per_token", "num_experts_per_tok", 4),
    ),
    options=LLAMA_OPTIONS | EXPERT_OPTIONS | {"window"},
    spec_defaults={
        **{name: default for name, default in LLAMA_DEFAULTS.items() if name not in ("mlp_width", "activation")},
        "rope_theta": 150_000.0,
        "window": 128,
        "experts": 32,
        "experts_per_token": 4,
        "expert_width": lambda width: width,
        "router_loss_weight": ROUTER_LOSS_WEIGHT,
    },
    weights=(
        *weights(
            {
                **LLAMA_NAMES,
                "blocks.{i}.attention.sinks": "model.layers.{i}.self_attn.sinks",
                "blocks.{i}.mlp.router": "model.layers.{i}.mlp.router",
            }
        ),
        # Features of gate and up in turn.
        Weight(_both("weight"), (f"{_THEIRS}.gate_up_proj",), True, groups="expert_width", dimension=1),
        Weight(_both("bias"), (f"{_THEIRS}.gate_up_proj_bias",), groups="expert_width", dimension=1),
        Weight((f"{_OURS}.down.weight",), (f"{_THEIRS}.down_proj",), True, dimension=1),
        Weight((f"{_OURS}.down.bias",), (f"{_THEIRS}.down_proj_bias",), dimension=1),
        *SCORES,
    ),
    prefix="model.",
    only={"hidden_act": "silu", "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    ignored=("*.rotary_emb.inv_freq",),
    read=_read,
    write=_write,
    complete=_complete,
)
