"""RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020): BERT with its positions numbered after the padding
token's, and heads of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmkit.model.config import ModelConfig
from llmkit.model.families.base import Family, weights, width_of_heads
from llmkit.model.families.bert import KEYS, body


def _read(settings: Mapping[str, Any], values: dict[str, Any]) -> None:
    values["kv_heads"], values["head_width"] = values["heads"], width_of_heads(values)
    values["embedding_dropout"] = values["dropout"]
    if values["head_dropout"] is None:
        values["head_dropout"] = values["dropout"]
    if values["pad_id"] is None:
        raise ValueError("pad_token_id is missing: positions are numbered from it")
    _number_positions(values)
    values["context"] -= values["position_offset"]
    if values["head"] == "masked-lm" and values["activation"] != "gelu":
        raise ValueError(f"hidden_act: {settings['hidden_act']!r} is not supported under a masked-lm head, only 'gelu'")


def _write(config: ModelConfig, settings: dict[str, Any]) -> None:
    settings["max_position_embeddings"] = config.context + config.position_offset
    settings["position_embedding_type"] = "absolute"


def _number_positions(values: dict[str, Any]) -> None:
    if values["pad_id"] is None:
        # What the published models have; a new one without a padding token can take any.
        values["pad_id"] = 1
    values["position_offset"] = values["pad_id"] + 1


ROBERTA = Family(
    name="roberta",
    base="RobertaModel",
    architectures={
        "masked-lm": "RobertaForMaskedLM",
        "classification": "RobertaForSequenceClassification",
        "reward": "RobertaForSequenceClassification",
        "token-classification": "RobertaForTokenClassification",
        "question-answering": "RobertaForQuestionAnswering",
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
        "norm_eps": 1e-5,
        "token_types": 1,
    },
    weights=weights(
        {
            **body("roberta."),
            "head.transform": "lm_head.dense",
            "head.norm": "lm_head.layer_norm",
            "head.projection.weight": "lm_head.decoder.weight",
            "head.projection.bias": "lm_head.bias",
            "head.pooler": "classifier.dense",
        }
    )
    + weights({"head.score": "classifier.out_proj"}, "classification", "reward")
    + weights({"head.score": "classifier"}, "token-classification")
    + weights({"head.score": "qa_outputs"}, "question-answering"),
    prefix="roberta.",
    only={"is_decoder": False, "add_cross_attention": False},
    aliases={"lm_head.bias": "lm_head.decoder.bias"},
    ignored=("*.position_ids", "roberta.pooler.*"),
    read=_read,
    write=_write,
    complete=_number_positions,
)

XLM_ROBERTA = replace(
    ROBERTA,
    name="xlm-roberta",
    base="XLMRobertaModel",
    architectures={head: f"XLM{architecture}" for head, architecture in ROBERTA.architectures.items()},
)
