"""Small encoders of the reference, and specs of ours: the table that `test_reference_families` goes through."""

from __future__ import annotations

from typing import Any

SPECIAL = {"vocab_size": 61, "initializer_range": 0.2, "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2}
BERT = {
    **SPECIAL,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
DISTILBERT = {**SPECIAL, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 64}
# Rows of 21 and of 40 tokens reach past a window of 4 tokens on either side.
MODERNBERT = {
    **SPECIAL,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "local_attention": 8,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 900.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
    "cls_token_id": 1,
    "sep_token_id": 2,
}

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "": ("ForMaskedLM", {}),
    "-classifier": ("ForSequenceClassification", {"num_labels": 4}),
    "-reward": ("ForSequenceClassification", {"num_labels": 1}),
    "-tagger": ("ForTokenClassification", {"num_labels": 5}),
    "-reader": ("ForQuestionAnswering", {}),
}
FAMILIES = {
    "bert": ("Bert", BERT),
    "roberta": ("Roberta", BERT),
    "xlm-roberta": ("XLMRoberta", BERT),
    "distilbert": ("DistilBert", DISTILBERT),
    "modernbert": ("ModernBert", MODERNBERT),
}

REFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        family + head: (name + suffix, {**settings, **own})
        for family, (name, settings) in FAMILIES.items()
        for head, (suffix, own) in HEADS.items()
    },
    "bert-untied": ("BertForMaskedLM", {**BERT, "tie_word_embeddings": False, "type_vocab_size": 4}),
    "bert-gelu-new": ("BertForSequenceClassification", {**BERT, "num_labels": 4, "hidden_act": "gelu_new"}),
    "roberta-untied": ("RobertaForMaskedLM", {**BERT, "tie_word_embeddings": False, "type_vocab_size": 1}),
    "distilbert-untied": ("DistilBertForMaskedLM", {**DISTILBERT, "tie_word_embeddings": False, "activation": "relu"}),
    "modernbert-biases": (
        "ModernBertForMaskedLM",
        {
            **MODERNBERT,
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
            "classifier_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "modernbert-mean": (
        "ModernBertForSequenceClassification",
        {**MODERNBERT, "num_labels": 3, "classifier_pooling": "mean"},
    ),
    "modernbert-layers": (
        "ModernBertForMaskedLM",
        {**MODERNBERT, "layer_types": ["sliding_attention"] * 2 + ["full_attention", "sliding_attention"]},
    ),
    "modernbert-global": ("ModernBertForMaskedLM", {**MODERNBERT, "layer_types": ["full_attention"] * 4}),
}
"""For each name the reference's class and its settings. Rows of up to 40 tokens go through each."""

SPECS: dict[str, dict[str, Any]] = {
    "bert": {"family": "bert"},
    "bert-untied": {"family": "bert", "tie_embeddings": False, "mlp_width": 24},
    "roberta": {"family": "roberta"},
    "xlm-roberta": {"family": "xlm-roberta", "tie_embeddings": False},
    "distilbert": {"family": "distilbert"},
    "modernbert": {"family": "modernbert", "rope_theta": 500.0},
}
"""Settings of a ModelSpec besides layers, width, heads and context."""
