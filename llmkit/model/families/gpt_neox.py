"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): parallel branches, part of each head rotated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.model.config import ModelConfig
from llmkit.model.families.base import Family, Key, Weight, weights, width_of_heads
from llmkit.model.families.llama import decoder_heads
from llmkit.model.families.rope import RopeNames, read_rope, write_rope

_ROPE = RopeNames(theta="rotary_emb_base", share="rotary_pct", default_share=0.25)


def _read(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    values["kv_heads"], values["head_width"] = values["heads"], width_of_heads(values)
    values["qkv_bias"] = values["output_bias"] = settings.get("attention_bias", True)
    values["embedding_dropout"] = values["dropout"]
    read_rope(settings, values, _ROPE)


def _write(config: ModelConfig, settings: dict[str, Any]) -> None:
    settings["attention_bias"] = config.qkv_bias
    write_rope(config, settings, _ROPE)


GPT_NEOX = Family(
    name="gpt_neox",
    base="GPTNeoXModel",
    architectures=decoder_heads("GPTNeoX", "token-classification", "question-answering"),
    parts={
        "causal": True,
        "norm": "layer",
        "norm_position": "pre",
        "positions": "rotary",
        "gated_mlp": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "scaled_residual_init": True,
    },
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("width", "hidden_size"),
        Key("layers", "num_hidden_layers"),
        Key("heads", "num_attention_heads"),
        Key("mlp_width", "intermediate_size"),
        Key("context", "max_position_embeddings", 2048),
        Key("norm_eps", "layer_norm_eps", 1e-5),
        Key("activation", "hidden_act", "gelu"),
        Key("parallel_residual", "use_parallel_residual", True),
        Key("tie_embeddings", "tie_word_embeddings", False),
        Key("dropout", "hidden_dropout", 0.0),
        Key("attention_dropout", "attention_dropout", 0.0),
        Key("init_std", "initializer_range", 0.02),
    ),
    options=frozenset({"rope_theta"}),
    spec_defaults={
        "context": 2048,
        "mlp_width": lambda width: 4 * width,
        "activation": "gelu",
        "norm_eps": 1e-5,
        "parallel_residual": True,
        "rotary_share": 0.25,
    },
    weights=(
        # Rows are query, key and value of the first head, then of the second, and so on.
        Weight(
            tuple(f"blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")),
            ("gpt_neox.layers.{i}.attention.query_key_value",),
            groups="heads",
        ),
        *weights(
            {
                "embeddings.token": "gpt_neox.embed_in",
                "blocks.{i}.attention_norm": "gpt_neox.layers.{i}.input_layernorm",
                "blocks.{i}.attention.output": "gpt_neox.layers.{i}.attention.dense",
                "blocks.{i}.mlp_norm": "gpt_neox.layers.{i}.post_attention_layernorm",
                "blocks.{i}.mlp.up": "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
                "blocks.{i}.mlp.down": "gpt_neox.layers.{i}.mlp.dense_4h_to_h",
                "norm": "gpt_neox.final_layer_norm",
                "head.projection": "embed_out",
            }
        ),
        *weights({"head.score": "score"}, "classification", "reward"),
        *weights({"head.score": "classifier"}, "token-classification"),
        *weights({"head.score": "qa_outputs"}, "question-answering"),
    ),
    prefix="gpt_neox.",
    # The reference's class says so since transformers 5, its files do not.
    renamed={"lm_head.": "embed_out."},
    ignored=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
    read=_read,
    write=_write,
)
