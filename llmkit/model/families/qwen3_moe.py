"""Qwen3 with routed experts (Yang et al. 2025): many narrow ones; single layers may have an MLP in their stead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.model.config import ModelConfig
from llmkit.model.families.base import SCORES, Family, Key, weights, with_defaults
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
from llmkit.model.families.local import read_local_layers
from llmkit.model.families.mixtral import EXPERT_OPTIONS, ROUTER_LOSS_WEIGHT, read_router_loss, write_router_loss

_COUNTS = ("num_experts", "num_local_experts")
"""Names of the number of experts, in published checkpoints and as transformers 5 writes it."""


def _read(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    read_llama(settings, values)
    used = settings if settings.get("use_sliding_window") else {**settings, "sliding_window": None}
    read_local_layers(used, values, 4096, lambda layer: True)
    counts = [settings[name] for name in _COUNTS if settings.get(name) is not None]
    values["experts"] = counts[0] if counts else 128
    if not isinstance(values["experts"], int):
        raise ValueError(f"num_experts: {counts[0]!r} is no whole number")
    values["dense_layers"] = _dense_layers(settings, values["layers"])
    read_router_loss(settings, values)


def _dense_layers(settings: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    step, named = settings.get("decoder_sparse_step", 1), settings.get("mlp_only_layers") or []
    if not isinstance(step, int) or step < 1:
        raise ValueError(f"decoder_sparse_step: {step!r} is no number of layers")
    if not isinstance(named, list):
        raise ValueError(f"mlp_only_layers: {named!r} is no list of layers")
    return tuple(layer for layer in range(layers) if layer in named or (layer + 1) % step)


def _write(config: ModelConfig, settings: dict[str, Any]) -> None:
    write_llama(config, settings)
    write_router_loss(config, settings)
    settings |= {
        "num_experts": config.experts,
        "mlp_only_layers": list(config.dense_layers),
        "decoder_sparse_step": 1,
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
    }


_LAYER = "model.layers.{i}.mlp"
_EXPERT = f"{_LAYER}.experts.{{e}}"

QWEN3_MOE = Family(
    name="qwen3_moe",
    base="Qwen3MoeModel",
    architectures=decoder_heads("Qwen3Moe", "token-classification", "question-answering"),
    parts={**LLAMA_PARTS, "qk_norm": "head"},
    keys=(
        *with_defaults(LLAMA_KEYS, kv_heads=4, context=32768, mlp_width=6144),
        Key("expert_width", "moe_intermediate_size", 768),
        Key("experts_per_token", "num_experts_per_tok", 8),
        Key("renormalize_experts", "norm_topk_prob", False),
    ),
    options=LLAMA_OPTIONS | EXPERT_OPTIONS,
    spec_defaults={
        **LLAMA_DEFAULTS,
        "norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "experts": 32,
        "experts_per_token": 4,
        # As wide together as an MLP in their stead.
        "expert_width": lambda width: -(-2 * width // (3 * 16)) * 16,
        "router_loss_weight": ROUTER_LOSS_WEIGHT,
    },
    weights=weights(
        {
            **LLAMA_NAMES,
            "blocks.{i}.mlp.router": f"{_LAYER}.gate",
            "blocks.{i}.mlp.experts.gate": f"{_EXPERT}.gate_proj",
            "blocks.{i}.mlp.experts.up": f"{_EXPERT}.up_proj",
            "blocks.{i}.mlp.experts.down": f"{_EXPERT}.down_proj",
        }
    )
    + SCORES,
    prefix="model.",
    head_prefixes={"question-answering": "transformer."},
    # As transformers 5 holds them in memory, and writes them where it is told to.
    joined={
        f"{_LAYER}.experts.gate_up_proj": (f"{_EXPERT}.gate_proj.weight", f"{_EXPERT}.up_proj.weight"),
        f"{_LAYER}.experts.down_proj": (f"{_EXPERT}.down_proj.weight",),
    },
    ignored=("*.rotary_emb.inv_freq",),
    read=_read,
    write=_write,
)
