"""BERT (Devlin et al. 2018): an encoder with learned positions and token types, layer norms after, GELU MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.model.config import ModelConfig
from llmkit.model.families.base import Family, Key, weights, width_of_heads


def _read(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    values["kv_heads"], values["head_width"] = values["heads"], width_of_heads(values)
    values["embedding_dropout"] = values["dropout"]
    if values["head_dropout"] is None:
        values["head_dropout"] = values["dropout"]


def _write(config: ModelConfig, settings: dict[str, Any]) -> None:
    # Current releases always add learned positions; this is how earlier ones and other tools are told.
    settings["position_embedding_type"] = "absolute"


KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("width", "hidden_size"),
    Key("layers", "num_hidden_layers"),
    Key("heads", "num_attention_heads"),
    Key("mlp_width", "intermediate_size"),
    Key("context", "max_position_embeddings", 512),
    Key("token_types", "type_vocab_size", 2),
    Key("norm_eps", "layer_norm_eps", 1e-12),
    Key("activation", "hidden_act", "gelu"),
    Key("tie_embeddings", "tie_word_embeddings", True),
    Key("dropout", "hidden_dropout_prob", 0.1),
    Key("attention_dropout", "attention_probs_dropout_prob", 0.1),
    Key("head_dropout", "classifier_dropout", None),
    Key("init_std", "initializer_range", 0.02),
)


def body(prefix: str) -> dict[str, str]:
    """Names of all but the head."""
    return {
        "embeddings.token": f"{prefix}embeddings.word_embeddings",
        "embeddings.position": f"{prefix}embeddings.position_embeddings",
        "embeddings.token_type": f"{prefix}embeddings.token_type_embeddings",
        "embeddings.norm": f"{prefix}embeddings.LayerNorm",
        "blocks.{i}.attention.query": f"{prefix}encoder.layer.{{i}}.attention.self.query",
        "blocks.{i}.attention.key": f"{prefix}encoder.layer.{{i}}.attention.self.key",
        "blocks.{i}.attention.value": f"{prefix}encoder.layer.{{i}}.attention.self.value",
        "blocks.{i}.attention.output": f"{prefix}encoder.layer.{{i}}.attention.output.dense",
        "blocks.{i}.attention_norm": f"{prefix}encoder.layer.{{i}}.attention.output.LayerNorm",
        "blocks.{i}.mlp.up": f"{prefix}encoder.layer.{{i}}.intermediate.dense",
        "blocks.{i}.mlp.down": f"{prefix}encoder.layer.{{i}}.output.dense",
        "blocks.{i}.mlp_norm": f"{prefix}encoder.layer.{{i}}.output.LayerNorm",
    }


BERT = Family(
    name="bert",
    base="BertModel",
    architectures={
        "masked-lm": "BertForMaskedLM",
        "classification": "BertForSequenceClassification",
        "reward": "BertForSequenceClassification",
        "token-classification": "BertForTokenClassification",
        "question-answering": "BertForQuestionAnswering",
    },
    parts={
        "causal": False,
        "pooling": "first",
        "pooler": "tanh",
        "norm": "layer",
        "norm_position": "post",
        "positions": "learned",
        "gated_mlp": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "embedding_norm": True,
    },
    keys=KEYS,
    options=frozenset(),
    spec_defaults={
        "context": 512,
        "mlp_width": lambda width: 4 * width,
        "activation": "gelu",
        "norm_eps": 1e-12,
        "token_types": 2,
    },
    weights=weights(
        {
            **body("bert."),
            "head.transform": "cls.predictions.transform.dense",
            "head.norm": "cls.predictions.transform.LayerNorm",
            "head.projection.weight": "cls.predictions.decoder.weight",
            "head.projection.bias": "cls.predictions.bias",
            "head.pooler": "bert.pooler.dense",
        }
    )
    + weights({"head.score": "classifier"}, "classification", "reward", "token-classification")
    + weights({"head.score": "qa_outputs"}, "question-answering"),
    prefix="bert.",
    only={"is_decoder": False, "add_cross_attention": False},
    # One bias where embeddings are tied; where they are not, the reference adds the second and ignores the first.
    aliases={"cls.predictions.bias": "cls.predictions.decoder.bias"},
    ignored=("*.position_ids", "cls.seq_relationship.*", "bert.pooler.*"),
    read=_read,
    write=_write,
)
