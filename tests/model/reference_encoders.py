"""Small encoders of the reference, and specs of ours: the table that `test_reference_families` goes through."""

from __future__ import annotations

from typing import Any

BERT = {
    "vocab_size": 61,
    "initializer_range": 0.2,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}

REFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", BERT),
    "bert-untied": ("BertForMaskedLM", {**BERT, "tie_word_embeddings": False, "type_vocab_size": 4}),
    "bert-classifier": ("BertForSequenceClassification", {**BERT, "num_labels": 4, "hidden_act": "gelu_new"}),
    "bert-reward": ("BertForSequenceClassification", {**BERT, "num_labels": 1}),
}
"""For each name the reference's class and its settings. Rows of up to 40 tokens go through each."""

SPECS: dict[str, dict[str, Any]] = {
    "bert": {"family": "bert"},
    "bert-untied": {"family": "bert", "tie_embeddings": False, "mlp_width": 24},
}
"""Settings of a ModelSpec besides layers, width, heads and context."""
