"""DistilBERT (Sanh et al. 2019): BERT of half the depth without token types, and heads of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.model.config import ModelConfig
from llmkit.model.families.base import Family, Key, weights, width_of_heads


def _read(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    values["kv_heads"], values["head_width"] = values["heads"], width_of_heads(values)
    values["embedding_dropout"] = values["dropout"]
    if values["head"] == "question-answering":
        values["head_dropout"] = settings.get("qa_dropout", 0.1)
    elif values["head"] == "token-classification":
        values["head_dropout"] = values["dropout"]


def _write(config: ModelConfig, settings: dict[str, Any]) -> None:
    if config.head == "question-answering":
        settings["qa_dropout"] = config.head_dropout


DISTILBERT = Family(
    name="distilbert",
    base="DistilBertModel",
    architectures={
        "masked-lm": "DistilBertForMaskedLM",
        "classification": "DistilBertForSequenceClassification",
        "reward": "DistilBertForSequenceClassification",
        "token-classification": "DistilBertForTokenClassification",
        "question-answering": "DistilBertForQuestionAnswering",
    },
    parts={
        "causal": False,
        "pooling": "first",
        "pooler": "relu",
        "norm": "layer",
        "norm_eps": 1e-12,
        "norm_position": "post",
        "positions": "learned",
        "gated_mlp": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "embedding_norm": True,
    },
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("width", "dim"),
        Key("layers", "n_layers"),
        Key("heads", "n_heads"),
        Key("mlp_width", "hidden_dim"),
        Key("context", "max_position_embeddings", 512),
        Key("activation", "activation", "gelu"),
        Key("tie_embeddings", "tie_word_embeddings", True),
        Key("dropout", "dropout", 0.1),
        Key("attention_dropout", "attention_dropout", 0.1),
        Key("head_dropout", "seq_classif_dropout", 0.2),
        Key("init_std", "initializer_range", 0.02),
    ),
    options=frozenset(),
    spec_defaults={"context": 512, "mlp_width": lambda width: 4 * width, "activation": "gelu"},
    weights=weights(
        {
            "embeddings.token": "distilbert.embeddings.word_embeddings",
            "embeddings.position": "distilbert.embeddings.position_embeddings",
            "embeddings.norm": "distilbert.embeddings.LayerNorm",
            "blocks.{i}.attention.query": "distilbert.transformer.layer.{i}.attention.q_lin",
            "blocks.{i}.attention.key": "distilbert.transformer.layer.{i}.attention.k_lin",
            "blocks.{i}.attention.value": "distilbert.transformer.layer.{i}.attention.v_lin",
            "blocks.{i}.attention.output": "distilbert.transformer.layer.{i}.attention.out_lin",
            "blocks.{i}.attention_norm": "distilbert.transformer.layer.{i}.sa_layer_norm",
            "blocks.{i}.mlp.up": "distilbert.transformer.layer.{i}.ffn.lin1",
            "blocks.{i}.mlp.down": "distilbert.transformer.layer.{i}.ffn.lin2",
            "blocks.{i}.mlp_norm": "distilbert.transformer.layer.{i}.output_layer_norm",
            "head.transform": "vocab_transform",
            "head.norm": "vocab_layer_norm",
            "head.projection": "vocab_projector",
            "head.pooler": "pre_classifier",
        }
    )
    + weights({"head.score": "classifier"}, "classification", "reward", "token-classification")
    + weights({"head.score": "qa_outputs"}, "question-answering"),
    prefix="distilbert.",
    ignored=("*.position_ids",),
    read=_read,
    write=_write,
)
