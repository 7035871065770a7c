"""Mistral (Jiang et al. 2023): Llama with a window in every layer, or in none from version 0.2 on."""

from __future__ import annotations

from collections.abc import Mapping
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
)
from llmkit.model.families.local import read_local_layers, with_windows
from llmkit.model.families.rope import read_rope, write_rope


def _read(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    read_heads(settings, values)
    read_rope(settings, values)
    read_local_layers(settings, values, 4096, lambda layer: True)
    if len(values["local_layers"]) not in (0, values["layers"]):
        raise ValueError("layer_types: all layers of this family are of one kind")


def _write(config: ModelConfig, settings: dict[str, Any]) -> None:
    write_rope(config, settings)
    settings["sliding_window"] = config.window


MISTRAL = Family(
    name="mistral",
    base="MistralModel",
    architectures=decoder_heads("Mistral", "token-classification", "question-answering"),
    parts=LLAMA_PARTS,
    keys=with_defaults(LLAMA_KEYS, kv_heads=8, context=131072),
    options=LLAMA_OPTIONS | {"window"},
    spec_defaults={**LLAMA_DEFAULTS, "window": 1024},
    complete=with_windows(lambda layer: True),
    weights=weights(LLAMA_NAMES) + SCORES,
    prefix="model.",
    ignored=("*.rotary_emb.inv_freq",),
    read=_read,
    write=_write,
)
