"""Small GGUF files, made with the writer of the `gguf` package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFWriter

SPECIAL = {
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 3,
}


def tokenizer_metadata(size: int) -> dict[str, Any]:
    """A vocabulary of so many tokens, of which a few make up a byte-level BPE."""
    tokens = ["Ċ", "<s>", "</s>", "<pad>", "t", "o", "to", *(f"x{index}" for index in range(size - 7))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1, 3, 3, 3] + [1] * (size - 4),
        "tokenizer.ggml.merges": ["t o"],
        **SPECIAL,
    }


def paired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of query or key in pairs, as files of the llama architecture have them, from halves of each head."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_llama(path: Path, model: Any, kind: GGMLQuantizationType = GGMLQuantizationType.F32) -> Path:
    """A Llama of `transformers` as a file, its matrices of the type `kind`; nothing of llmkit is used."""
    from gguf.quants import quantize

    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_string("general.name", "small")
    for key, value in {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "rope.dimension_count": config.head_dim,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32("llama.rope.freq_base", config.rope_parameters["rope_theta"])
    for key, value in tokenizer_metadata(config.vocab_size).items():
        add = {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}[type(value)]
        add(key, value)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            data = paired(weight, heads).numpy()
        else:
            data = weight.numpy()
        if data.ndim == 1 or kind == GGMLQuantizationType.F32:
            writer.add_tensor(gguf_name(name), data)
        else:
            writer.add_tensor(gguf_name(name), quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "model.layers.": "blk.", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """The file's name of a Llama's weight."""
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return name
