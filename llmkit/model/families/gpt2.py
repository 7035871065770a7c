"""GPT-2 (Radford et al. 2019): learned positions, layer norms before, tanh-GELU MLP, biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.model.config import ModelConfig
from llmkit.model.families.base import Family, Key, Weight, weights, width_of_heads


def _read(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    values["kv_heads"], values["head_width"] = values["heads"], width_of_heads(values)
    values["mlp_width"] = values["mlp_width"] or 4 * values["width"]


def _write(config: ModelConfig, settings: dict[str, Any]) -> None:
    # Read by servers and converters that ask every family for its length under this name.
    settings["n_ctx"] = config.context


def _layer(ours: str, theirs: str) -> Weight:
    return Weight((f"blocks.{{i}}.{ours}",), (f"transformer.h.{{i}}.{theirs}",), transposed=True)


GPT2 = Family(
    name="gpt2",
    base="GPT2Model",
    architectures={
        "causal-lm": "GPT2LMHeadModel",
        "classification": "GPT2ForSequenceClassification",
        "reward": "GPT2ForSequenceClassification",
        "token-classification": "GPT2ForTokenClassification",
        "question-answering": "GPT2ForQuestionAnswering",
    },
    parts={
        "causal": True,
        "norm": "layer",
        "norm_position": "pre",
        "positions": "learned",
        "gated_mlp": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "scaled_residual_init": True,
    },
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("width", "n_embd"),
        Key("layers", "n_layer"),
        Key("heads", "n_head"),
        Key("mlp_width", "n_inner", None),
        Key("context", "n_positions", 1024),
        Key("norm_eps", "layer_norm_epsilon", 1e-5),
        Key("activation", "activation_function", "gelu_new"),
        Key("tie_embeddings", "tie_word_embeddings", True),
        Key("embedding_dropout", "embd_pdrop", 0.1),
        Key("dropout", "resid_pdrop", 0.1),
        Key("attention_dropout", "attn_pdrop", 0.1),
        Key("init_std", "initializer_range", 0.02),
    ),
    options=frozenset(),
    spec_defaults={
        "context": 1024,
        "mlp_width": lambda width: 4 * width,
        "activation": "gelu_tanh",
        "norm_eps": 1e-5,
    },
    weights=(
        *weights(
            {
                "embeddings.token": "transformer.wte",
                "embeddings.position": "transformer.wpe",
                "blocks.{i}.attention_norm": "transformer.h.{i}.ln_1",
                "blocks.{i}.mlp_norm": "transformer.h.{i}.ln_2",
                "norm": "transformer.ln_f",
                "head.projection": "lm_head",
            }
        ),
        *weights({"head.score": "score"}, "classification", "reward"),
        *weights({"head.score": "classifier"}, "token-classification"),
        *weights({"head.score": "qa_outputs"}, "question-answering"),
        Weight(
            tuple(f"blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")),
            ("transformer.h.{i}.attn.c_attn",),
            transposed=True,
        ),
        _layer("attention.output", "attn.c_proj"),
        _layer("mlp.up", "mlp.c_fc"),
        _layer("mlp.down", "mlp.c_proj"),
    ),
    prefix="transformer.",
    only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ignored=("*.attn.bias", "*.attn.masked_bias"),
    read=_read,
    write=_write,
)
