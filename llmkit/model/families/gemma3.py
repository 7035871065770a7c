"""Gemma 3's text models (Gemma Team 2025): Gemma 2 with norms of queries and keys in place of soft-caps, five layers
with a window to one without, and rotary bases of their own for the two kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmkit.model.config import ModelConfig
from llmkit.model.families.base import SCORES, Family, weights, with_defaults
from llmkit.model.families.gemma import (
    GEMMA2_KEYS,
    GEMMA2_NAMES,
    GEMMA_DEFAULTS,
    GEMMA_PARTS,
    read_scores,
    write_gemma,
    write_scores,
)
from llmkit.model.families.llama import LLAMA_OPTIONS, read_heads
from llmkit.model.families.local import read_local_layers, with_windows, write_local_layers
from llmkit.model.families.rope import RopeNames, read_rope, write_rope

_ROPE = RopeNames(default_theta=1_000_000.0, local_theta="rope_local_base_freq")
_PATTERN = 6


def _read(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    read_heads(settings, values)
    read_scores(settings, values)
    read_rope(settings, values, _ROPE)
    values["qkv_bias"] = values["output_bias"] = settings.get("attention_bias", False)
    values["logit_softcap"] = settings.get("final_logit_softcapping")
    pattern = settings.get("sliding_window_pattern", _PATTERN)
    if not isinstance(pattern, int) or pattern < 1:
        raise ValueError(f"sliding_window_pattern: {pattern!r} is no number of layers")
    read_local_layers(settings, values, 4096, lambda layer: (layer + 1) % pattern != 0)


def _write(config: ModelConfig, settings: dict[str, Any]) -> None:
    write_gemma(config, settings)
    write_rope(config, settings, _ROPE)
    write_scores(config, settings)
    write_local_layers(config, settings)
    settings["final_logit_softcapping"] = config.logit_softcap


GEMMA3 = Family(
    name="gemma3_text",
    base="Gemma3TextModel",
    architectures={
        "causal-lm": "Gemma3ForCausalLM",
        "classification": "Gemma3TextForSequenceClassification",
        "reward": "Gemma3TextForSequenceClassification",
    },
    parts={**GEMMA_PARTS, "norm_position": "sandwich", "qk_norm": "head", "local_rope_theta": 10_000.0},
    # The text part of a published multimodal model names only what differs from these.
    keys=with_defaults(
        GEMMA2_KEYS, vocab_size=262_208, width=2304, layers=26, heads=8, mlp_width=9216, context=131_072
    ),
    options=LLAMA_OPTIONS | {"window"},
    spec_defaults={**GEMMA_DEFAULTS, "window": 512, "rope_theta": 1_000_000.0},
    complete=with_windows(lambda layer: (layer + 1) % _PATTERN != 0),
    weights=weights(GEMMA2_NAMES) + SCORES,
    prefix="model.",
    only={"use_bidirectional_attention": False, "attn_logit_softcapping": None},
    read=_read,
    write=_write,
)


def _read_text(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    values["family"] = GEMMA3.name
    _read(settings, values)


GEMMA3_MULTIMODAL = replace(
    GEMMA3,
    name="gemma3",
    base="Gemma3Model",
    architectures={"causal-lm": "Gemma3ForConditionalGeneration"},
    section="text_config",
    renamed={
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "model.language_model.": "model.",
    },
    ignored=("vision_tower.*", "multi_modal_projector.*", "model.vision_tower.*", "model.multi_modal_projector.*"),
    read=_read_text,
)
"""Opened for its text model alone, and saved as such; images are not understood."""
