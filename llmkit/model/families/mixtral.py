"""Mixtral (Jiang et al. 2024): Mistral with routed experts in every layer.

What families with experts share stands here too: options, the weight of the load-balancing loss.
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
    read_heads,
)
from llmkit.model.families.local import read_local_layers
from llmkit.model.families.rope import RopeNames, read_rope, write_rope

EXPERT_OPTIONS = frozenset({"experts", "experts_per_token", "expert_width", "router_loss_weight"})
ROUTER_LOSS_WEIGHT = 0.01
"""Of the load-balancing loss in training a new model (Fedus et al. 2021)."""

_REFERENCE_LOSS_WEIGHT = 0.001
_ROPE = RopeNames(default_theta=1_000_000.0)


def read_router_loss(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    """The weight of the load-balancing loss, which the reference adds only where it is told to give out scores."""
    weight = settings.get("router_aux_loss_coef")
    values["router_loss_weight"] = 0.0
    if settings.get("output_router_logits"):
        if weight is not None and (not isinstance(weight, int | float) or not weight >= 0):
            raise ValueError(f"router_aux_loss_coef: {weight!r} is no weight of a loss")
        values["router_loss_weight"] = _REFERENCE_LOSS_WEIGHT if weight is None else weight


def write_router_loss(config: ModelConfig, settings: dict[str, Any]) -> None:
    """What `read_router_loss` reads."""
    settings["output_router_logits"] = config.router_loss_weight > 0
    settings["router_aux_loss_coef"] = config.router_loss_weight or _REFERENCE_LOSS_WEIGHT


def without_dense_layers(values: dict[str, Any]) -> None:
    """Set the width that MLPs would have in layers without experts, where there are none."""
    values["mlp_width"] = values["expert_width"]


def _read(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    read_heads(settings, values)
    read_rope(settings, values, _ROPE)
    read_local_layers(settings, values, None, lambda layer: True)
    if len(values["local_layers"]) not in (0, values["layers"]):
        raise ValueError("layer_types: all layers of this family are of one kind")
    read_router_loss(settings, values)
    without_dense_layers(values)


def _write(config: ModelConfig, settings: dict[str, Any]) -> None:
    write_rope(config, settings, _ROPE)
    write_router_loss(config, settings)
    settings["sliding_window"] = config.window


_EXPERT = "model.layers.{i}.block_sparse_moe.experts.{e}"

MIXTRAL = Family(
    name="mixtral",
    base="MixtralModel",
    architectures=decoder_heads("Mixtral", "token-classification", "question-answering"),
    parts=LLAMA_PARTS,
    keys=(
        *with_defaults(without(LLAMA_KEYS, "mlp_width"), kv_heads=8, context=131072, norm_eps=1e-5),
        Key("expert_width", "intermediate_size", 14336),
        Key("experts", "num_local_experts", 8),
        Key("experts_per_token", "num_experts_per_tok", 2),
    ),
    options=LLAMA_OPTIONS | EXPERT_OPTIONS,
    spec_defaults={
        **{name: default for name, default in LLAMA_DEFAULTS.items() if name != "mlp_width"},
        "experts": 8,
        "experts_per_token": 2,
        "expert_width": LLAMA_DEFAULTS["mlp_width"],
        "router_loss_weight": ROUTER_LOSS_WEIGHT,
    },
    weights=weights(
        {
            **LLAMA_NAMES,
            "blocks.{i}.mlp.router": "model.layers.{i}.block_sparse_moe.gate",
            "blocks.{i}.mlp.experts.gate": f"{_EXPERT}.w1",
            "blocks.{i}.mlp.experts.up": f"{_EXPERT}.w3",
            "blocks.{i}.mlp.experts.down": f"{_EXPERT}.w2",
        }
    )
    + SCORES,
    prefix="model.",
    # It disturbs what the router sees, in training.
    only={"router_jitter_noise": 0.0},
    # As transformers 5 holds them in memory, and writes them where it is told to.
    joined={
        "model.layers.{i}.mlp.gate.weight": ("model.layers.{i}.block_sparse_moe.gate.weight",),
        "model.layers.{i}.mlp.experts.gate_up_proj": (f"{_EXPERT}.w1.weight", f"{_EXPERT}.w3.weight"),
        "model.layers.{i}.mlp.experts.down_proj": (f"{_EXPERT}.w2.weight",),
    },
    ignored=("*.rotary_emb.inv_freq",),
    read=_read,
    write=_write,
    complete=without_dense_layers,
)
