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
GPT_NEOX = {
    **SMALL,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GEMMA = {**LLAMA, "head_dim": 12}
GEMMA2 = {**GEMMA, "num_hidden_layers": 3, "query_pre_attn_scalar": 20, "sliding_window": 6}
GEMMA3 = {**GEMMA2, "num_hidden_layers": 7}
QWEN3 = {**LLAMA, "head_dim": 10}
PHI3 = {**LLAMA, "original_max_position_embeddings": 64}


def scaled(kind: str, theta: float = 500.0, **settings: Any) -> dict[str, Any]:
    """Rotary settings in transformers 5's form."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **settings}}


LLAMA3 = scaled("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = scaled("yarn", factor=4.0, original_max_position_embeddings=16)
SHORT, LONG = [1.0, 1.1, 1.3, 1.7], [1.5, 2.0, 3.0, 7.0]
LONGROPE = scaled("longrope", short_factor=SHORT, long_factor=LONG, original_max_position_embeddings=16)

# Each row is as long as it wants: the reference keeps frequencies for the longest sequence seen so far.
REFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", LLAMA),
    "llama-tied": ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
    "llama-biases": ("LlamaForCausalLM", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("LlamaForCausalLM", {**LLAMA, "head_dim": 12, "num_key_value_heads": 1}),
    "llama-llama3": ("LlamaForCausalLM", {**LLAMA, **LLAMA3}),
    "llama-linear": ("LlamaForCausalLM", {**LLAMA, **scaled("linear", 300.0, factor=3.0)}),
    "llama-dynamic": (
        "LlamaForCausalLM",
        {**LLAMA, "max_position_embeddings": 16, **scaled("dynamic", factor=2.0)},
    ),
    "llama-yarn": ("LlamaForCausalLM", {**LLAMA, **YARN}),
    "llama-yarn-all": (
        "LlamaForCausalLM",
        {
            **LLAMA,
            **scaled(
                "yarn",
                factor=2.5,
                original_max_position_embeddings=24,
                beta_fast=3.0,
                beta_slow=0.4,
                truncate=False,
                mscale=0.7,
                mscale_all_dim=1.3,
            ),
        },
    ),
    "llama-longrope": ("LlamaForCausalLM", {**LLAMA, **LONGROPE}),
    "llama-classifier": ("LlamaForSequenceClassification", {**LLAMA, "num_labels": 3}),
    "llama-reward": ("LlamaForSequenceClassification", {**LLAMA, "num_labels": 1}),
    "llama-tokens": ("LlamaForTokenClassification", {**LLAMA, "num_labels": 3}),
    "llama-spans": ("LlamaForQuestionAnswering", LLAMA),
    "mistral": ("MistralForCausalLM", {**LLAMA, "sliding_window": 5, "head_dim": 12}),
    "mistral-global": ("MistralForCausalLM", {**LLAMA, "sliding_window": None}),
    "mistral-spans": ("MistralForQuestionAnswering", {**LLAMA, "sliding_window": 5}),
    "qwen2": ("Qwen2ForCausalLM", LLAMA),
    "qwen2-windows": (
        "Qwen2ForCausalLM",
        {**LLAMA, "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen2-layer-types": (
        "Qwen2ForCausalLM",
        {
            **LLAMA,
            **YARN,
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "qwen2-classifier": ("Qwen2ForSequenceClassification", {**LLAMA, "num_labels": 3}),
    "qwen3": ("Qwen3ForCausalLM", QWEN3),
    "qwen3-windows": (
        "Qwen3ForCausalLM",
        {**QWEN3, "attention_bias": True, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3-reward": ("Qwen3ForSequenceClassification", {**QWEN3, "num_labels": 1}),
    "gemma": ("GemmaForCausalLM", GEMMA),
    "gemma-gelu": ("GemmaForCausalLM", {**GEMMA, "hidden_act": "gelu", "attention_bias": True}),
    "gemma-reward": ("GemmaForSequenceClassification", {**GEMMA, "num_labels": 1}),
    "gemma2": ("Gemma2ForCausalLM", GEMMA2),
    "gemma2-hard-caps": (
        "Gemma2ForCausalLM",
        {**GEMMA2, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.5, "tie_word_embeddings": False},
    ),
    "gemma2-no-caps": (
        "Gemma2ForCausalLM",
        {**GEMMA2, "attn_logit_softcapping": None, "final_logit_softcapping": None, "hidden_activation": "gelu"},
    ),
    "gemma2-classifier": ("Gemma2ForSequenceClassification", {**GEMMA2, "num_labels": 3}),
    "gemma3": ("Gemma3ForCausalLM", GEMMA3),
    "gemma3-scaled": (
        "Gemma3ForCausalLM",
        {
            **GEMMA3,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "final_logit_softcapping": 2.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 700.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
            },
        },
    ),
    "gemma3-classifier": ("Gemma3TextForSequenceClassification", {**GEMMA3, "num_labels": 3}),
    "phi3": ("Phi3ForCausalLM", {**PHI3, "sliding_window": 7}),
    "phi3-partial": ("Phi3ForCausalLM", {**PHI3, **scaled("default", partial_rotary_factor=0.5)}),
    "phi3-longrope": (
        "Phi3ForCausalLM",
        {
            **PHI3,
            "original_max_position_embeddings": 16,
            **scaled("longrope", short_factor=SHORT[1:], long_factor=LONG[1:], partial_rotary_factor=0.75),
        },
    ),
    "phi3-reward": ("Phi3ForSequenceClassification", {**PHI3, "num_labels": 1}),
    "olmo2": ("Olmo2ForCausalLM", LLAMA),
    "olmo2-biases": ("Olmo2ForCausalLM", {**LLAMA, "attention_bias": True, "tie_word_embeddings": True}),
    "olmo2-classifier": ("Olmo2ForSequenceClassification", {**LLAMA, "num_labels": 3}),
    "gpt_neox": ("GPTNeoXForCausalLM", GPT_NEOX),
    "gpt_neox-serial": (
        "GPTNeoXForCausalLM",
        {
            **GPT_NEOX,
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
            **scaled("linear", factor=2.0, partial_rotary_factor=0.75),
        },
    ),
    "gpt_neox-classifier": ("GPTNeoXForSequenceClassification", {**GPT_NEOX, "num_labels": 3}),
    "gpt_neox-tokens": ("GPTNeoXForTokenClassification", {**GPT_NEOX, "num_labels": 3}),
    "gpt_neox-spans": ("GPTNeoXForQuestionAnswering", GPT_NEOX),
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
    "mistral": {"family": "mistral", "kv_heads": 2, "window": 5},
    "qwen2": {"family": "qwen2", "kv_heads": 2},
    "qwen3": {"family": "qwen3", "kv_heads": 2, "head_width": 10},
    "gemma": {"family": "gemma", "kv_heads": 1},
    "gemma2": {"family": "gemma2", "kv_heads": 2, "window": 6},
    "gemma3": {"family": "gemma3_text", "kv_heads": 2, "window": 6, "rope_theta": 700.0},
    "phi3": {"family": "phi3", "kv_heads": 2, "tie_embeddings": False},
    "olmo2": {"family": "olmo2", "kv_heads": 2},
    "gpt_neox": {"family": "gpt_neox"},
    "gpt2": {"family": "gpt2"},
    "gpt2-untied": {"family": "gpt2", "tie_embeddings": False, "mlp_width": 24},
}
"""Settings of a ModelSpec besides layers, width, heads and context."""
