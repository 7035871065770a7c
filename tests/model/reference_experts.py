"""Small models with routed experts of the reference, and specs of ours: for `test_reference_families`."""

from __future__ import annotations

from typing import Any

SMALL = {
    "vocab_size": 61,
    "initializer_range": 0.2,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
MIXTRAL = {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN3_MOE = {**SMALL, "head_dim": 10, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
GPT_OSS = {
    **SMALL,
    "head_dim": 10,
    "num_hidden_layers": 3,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": 7,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 600.0,
        "factor": 8.0,
        "beta_fast": 2.0,
        "beta_slow": 0.5,
        "truncate": False,
        "original_max_position_embeddings": 8,
    },
}

REFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralForCausalLM", MIXTRAL),
    "mixtral-window": ("MixtralForCausalLM", {**MIXTRAL, "sliding_window": 6, "tie_word_embeddings": True}),
    "mixtral-one-expert": ("MixtralForCausalLM", {**MIXTRAL, "num_experts_per_tok": 1, "hidden_act": "gelu"}),
    "mixtral-router-loss": (
        "MixtralForCausalLM",
        {**MIXTRAL, "output_router_logits": True, "router_aux_loss_coef": 0.02},
    ),
    "mixtral-reward": ("MixtralForSequenceClassification", {**MIXTRAL, "num_labels": 1}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", QWEN3_MOE),
    "qwen3_moe-normalised": ("Qwen3MoeForCausalLM", {**QWEN3_MOE, "norm_topk_prob": True}),
    "qwen3_moe-dense-layers": (
        "Qwen3MoeForCausalLM",
        {**QWEN3_MOE, "num_hidden_layers": 5, "mlp_only_layers": [3], "decoder_sparse_step": 2, "attention_bias": True},
    ),
    "qwen3_moe-window": ("Qwen3MoeForCausalLM", {**QWEN3_MOE, "use_sliding_window": True, "sliding_window": 5}),
    "qwen3_moe-classifier": ("Qwen3MoeForSequenceClassification", {**QWEN3_MOE, "num_labels": 3}),
    "gpt_oss": ("GptOssForCausalLM", GPT_OSS),
    "gpt_oss-defaults": (
        "GptOssForCausalLM",
        {key: value for key, value in GPT_OSS.items() if key not in ("rope_parameters", "sliding_window")},
    ),
    "gpt_oss-unbiased": (
        "GptOssForCausalLM",
        {**GPT_OSS, "attention_bias": False, "layer_types": ["full_attention", "full_attention", "sliding_attention"]},
    ),
    "gpt_oss-classifier": ("GptOssForSequenceClassification", {**GPT_OSS, "num_labels": 3}),
}
"""For each name the reference's class and its settings. Rows of up to 40 tokens go through each."""

SPECS: dict[str, dict[str, Any]] = {
    "mixtral": {"family": "mixtral", "kv_heads": 2, "expert_width": 20, "router_loss_weight": 0.0},
    "mixtral-many": {"family": "mixtral", "experts": 16, "experts_per_token": 3, "tie_embeddings": False},
    "qwen3_moe": {"family": "qwen3_moe", "kv_heads": 2, "mlp_width": 24},
    "qwen3_moe-few": {"family": "qwen3_moe", "experts": 5, "experts_per_token": 1, "expert_width": 12},
    "gpt_oss": {"family": "gpt_oss", "window": 9, "head_width": 10, "experts": 6},
}
"""Settings of a ModelSpec besides layers, width, heads and context."""
