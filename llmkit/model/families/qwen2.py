"""Qwen2, 2.5 (Yang et al. 2024) and 3 (Yang et al. 2025): Llama with biases of queries, keys and values, or with norms
of queries and keys; upper layers may have a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmkit.model.config import ModelConfig
from llmkit.model.families.base import SCORES, Family, weights, with_defaults
from llmkit.model.families.llama import (
    LLAMA_DEFAULTS,
    LLAMA_KEYS,
    LLAMA_NAMES,
    LLAMA_OPTIONS,
    LLAMA_PARTS,
    decoder_heads,
    read_heads,
    read_llama,
    write_llama,
)
from llmkit.model.families.local import read_local_layers, write_local_layers
from llmkit.model.families.rope import read_rope, write_rope


def read_windows(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    """The window, which is none unless it is switched on, and the layers that have it."""
    first = settings.get("max_window_layers", 28)
    if not isinstance(first, int):
        raise ValueError(f"max_window_layers: {first!r} is no whole number")
    used = settings if settings.get("use_sliding_window") else {**settings, "sliding_window": None}
    read_local_layers(used, values, 4096, lambda layer: layer >= first)


def write_windows(config: ModelConfig, settings: dict[str, Any]) -> None:
    """What `read_windows` reads."""
    write_local_layers(config, settings)
    settings["use_sliding_window"] = config.window is not None
    settings["max_window_layers"] = next(iter(config.local_layers), config.layers)


def _read2(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    read_heads(settings, values)
    read_rope(settings, values)
    read_windows(settings, values)


def _write2(config: ModelConfig, settings: dict[str, Any]) -> None:
    write_rope(config, settings)
    write_windows(config, settings)


def _read3(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    read_llama(settings, values)
    read_windows(settings, values)


def _write3(config: ModelConfig, settings: dict[str, Any]) -> None:
    write_llama(config, settings)
    write_windows(config, settings)


QWEN2 = Family(
    name="qwen2",
    base="Qwen2Model",
    architectures=decoder_heads("Qwen2", "token-classification", "question-answering"),
    parts={**LLAMA_PARTS, "qkv_bias": True},
    keys=with_defaults(LLAMA_KEYS, kv_heads=32, context=32768),
    options=LLAMA_OPTIONS,
    spec_defaults={**LLAMA_DEFAULTS, "norm_eps": 1e-6, "rope_theta": 1_000_000.0},
    weights=weights(LLAMA_NAMES) + SCORES,
    prefix="model.",
    head_prefixes={"question-answering": "transformer."},
    ignored=("*.rotary_emb.inv_freq",),
    read=_read2,
    write=_write2,
)

QWEN3 = replace(
    QWEN2,
    name="qwen3",
    base="Qwen3Model",
    architectures=decoder_heads("Qwen3", "token-classification", "question-answering"),
    parts={**LLAMA_PARTS, "qk_norm": "head"},
    keys=with_defaults(LLAMA_KEYS, kv_heads=32, context=32768, head_width=128),
    read=_read3,
    write=_write3,
)
