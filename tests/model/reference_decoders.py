"""Small decoders of the reference, and specs of ours: the table that `test_reference_families` goes through."""

from __future__ import annotations

from typing import Any

SMALL = {"vocab_size": 61, "initializer_range": 0.2, "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {
    **SMALL,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
GPT2 = {**SMALL, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

REFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", LLAMA),
    "llama-tied": ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
    "llama-biases": ("LlamaForCausalLM", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("LlamaForCausalLM", {**LLAMA, "head_dim": 12, "num_key_value_heads": 1}),
    "llama-scaled": ("LlamaForCausalLM", {**LLAMA, "rope_parameters": LLAMA3_SCALING}),
    "llama-linear": (
        "LlamaForCausalLM",
        {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0}},
    ),
    "llama-classifier": ("LlamaForSequenceClassification", {**LLAMA, "num_labels": 3}),
    "llama-reward": ("LlamaForSequenceClassification", {**LLAMA, "num_labels": 1}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2-untied": ("GPT2LMHeadModel", {**GPT2, "tie_word_embeddings": False, "n_inner": 48}),
    "gpt2-relu": ("GPT2LMHeadModel", {**GPT2, "activation_function": "relu"}),
    "gpt2-classifier": ("GPT2ForSequenceClassification", {**GPT2, "num_labels": 2}),
    "gpt2-reward": ("GPT2ForSequenceClassification", {**GPT2, "num_labels": 1}),
}
"""For each name the reference's class and its settings. Rows of up to 40 tokens go through each."""

SPECS: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama", "kv_heads": 2, "head_width": 10, "rope_theta": 700.0},
    "llama-untied": {"family": "llama", "tie_embeddings": False, "mlp_width": 24},
    "gpt2": {"family": "gpt2"},
    "gpt2-untied": {"family": "gpt2", "tie_embeddings": False, "mlp_width": 24},
}
"""Settings of a ModelSpec besides layers, width, heads and context."""
