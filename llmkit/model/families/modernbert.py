"""ModernBERT (Warner et al. 2024): an encoder with rotary positions, gated MLPs, norms before, and local layers, which
see a window to both sides and have a rotary base of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.model.config import ModelConfig
from llmkit.model.families.base import Family, Key, Weight, weights, width_of_heads
from llmkit.model.families.local import read_local_layers, write_local_layers
from llmkit.model.families.rope import RopeNames, read_rope, write_rope

_ROPE = RopeNames("global_rope_theta", 160000.0, local_theta="local_rope_theta")
_POOLING = {"cls": "first", "mean": "mean"}
_WINDOW = 128


def _read(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    values["kv_heads"], values["head_width"] = values["heads"], width_of_heads(values)
    values["output_bias"] = values["qkv_bias"]
    read_rope(settings, values, _ROPE)
    if values["rope_scaling"] is not None:
        raise ValueError("rotary scaling is not supported for family modernbert")
    both, every = settings.get("local_attention", _WINDOW), settings.get("global_attn_every_n_layers", 3)
    for name, number in (("local_attention", both), ("global_attn_every_n_layers", every)):
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}: {number!r} is no positive whole number")
    # Theirs is the width of the whole window, ours of either side.
    halved = {"sliding_window": both // 2, "layer_types": settings.get("layer_types")}
    read_local_layers(halved, values, None, lambda layer: layer % every > 0)
    if settings.get("classifier_activation", "gelu") != settings.get("hidden_activation", "gelu"):
        raise ValueError("classifier_activation: only that of hidden_activation is supported")
    pooling = settings.get("classifier_pooling", "cls")
    if pooling not in _POOLING:
        raise ValueError(f"classifier_pooling: {pooling!r} is not supported, only {', '.join(_POOLING)} are")
    values["pooling"] = _POOLING[pooling]


def _local_layers(count: int, every: int) -> tuple[int, ...]:
    return tuple(layer for layer in range(count) if layer % every)


def _write(config: ModelConfig, settings: dict[str, Any]) -> None:
    write_rope(config, settings, _ROPE)
    write_local_layers(config, settings)
    window = settings.pop("sliding_window")
    settings["local_attention"] = _WINDOW if window is None else 2 * window
    # Read by releases before transformers 5 in place of the kind of each layer.
    patterns = {every: _local_layers(config.layers, every) for every in range(1, config.layers + 1)}
    settings["global_attn_every_n_layers"] = next(
        (every for every, layers in patterns.items() if layers == config.local_layers), 3
    )
    settings["classifier_activation"] = settings["hidden_activation"]
    settings["classifier_pooling"] = "mean" if config.pooling == "mean" else "cls"


def _complete(values: dict[str, Any]) -> None:
    values["local_layers"] = _local_layers(values["layers"], 3)


MODERNBERT = Family(
    name="modernbert",
    base="ModernBertModel",
    architectures={
        "masked-lm": "ModernBertForMaskedLM",
        "classification": "ModernBertForSequenceClassification",
        "reward": "ModernBertForSequenceClassification",
        "token-classification": "ModernBertForTokenClassification",
        "question-answering": "ModernBertForQuestionAnswering",
    },
    parts={
        "causal": False,
        "pooling": "first",
        "pooler": "transform",
        "norm": "layer",
        "norm_position": "pre",
        "skip_first_norm": True,
        "embedding_norm": True,
        "positions": "rotary",
        "gated_mlp": True,
        "scaled_residual_init": True,
    },
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("width", "hidden_size"),
        Key("layers", "num_hidden_layers"),
        Key("heads", "num_attention_heads"),
        Key("mlp_width", "intermediate_size"),
        Key("context", "max_position_embeddings", 8192),
        Key("norm_eps", "norm_eps", 1e-5),
        Key("norm_bias", "norm_bias", False),
        Key("qkv_bias", "attention_bias", False),
        Key("mlp_bias", "mlp_bias", False),
        Key("transform_bias", "classifier_bias", False),
        Key("activation", "hidden_activation", "gelu"),
        Key("tie_embeddings", "tie_word_embeddings", True),
        Key("embedding_dropout", "embedding_dropout", 0.0),
        Key("attention_dropout", "attention_dropout", 0.0),
        Key("dropout", "mlp_dropout", 0.0),
        Key("head_dropout", "classifier_dropout", 0.0),
        Key("init_std", "initializer_range", 0.02),
    ),
    options=frozenset({"rope_theta"}),
    spec_defaults={
        "context": 8192,
        # As the published ones: 3/2 of the width for each of three matrices.
        "mlp_width": lambda width: 3 * width // 2,
        "activation": "gelu",
        "norm_eps": 1e-5,
        "rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "window": _WINDOW // 2,
        "norm_bias": False,
        "transform_bias": False,
    },
    weights=(
        *weights(
            {
                "embeddings.token": "model.embeddings.tok_embeddings",
                "embeddings.norm": "model.embeddings.norm",
                "blocks.{i}.attention_norm": "model.layers.{i}.attn_norm",
                "blocks.{i}.attention.output": "model.layers.{i}.attn.Wo",
                "blocks.{i}.mlp_norm": "model.layers.{i}.mlp_norm",
                "blocks.{i}.mlp.down": "model.layers.{i}.mlp.Wo",
                "norm": "model.final_norm",
                "head.transform": "head.dense",
                "head.norm": "head.norm",
                "head.projection": "decoder",
                "head.score": "classifier",
            }
        ),
        Weight(
            tuple(f"blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")),
            ("model.layers.{i}.attn.Wqkv",),
        ),
        Weight(("blocks.{i}.mlp.gate", "blocks.{i}.mlp.up"), ("model.layers.{i}.mlp.Wi",)),
    ),
    prefix="model.",
    only={"decoder_bias": True},
    read=_read,
    write=_write,
    complete=_complete,
)
