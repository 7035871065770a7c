"""Tiny reference models with PEFT's adapters on them, and the same opened here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from llmkit.model.adapters.attach import adapter_of
from llmkit.model.transformer import Transformer

VOCABULARY, PAD = 61, 3
SMALL = {"vocab_size": VOCABULARY, "initializer_range": 0.2, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "Llama": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
    },
    "GPT2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "attn_pdrop": 0,
        "resid_pdrop": 0,
        "embd_pdrop": 0,
    },
    "Bert": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
        "attention_probs_dropout_prob": 0,
        "hidden_dropout_prob": 0,
    },
}
TARGETS = {
    "Llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "GPT2": ["c_attn", "c_fc", "mlp.c_proj"],
    "Bert": ["query", "value", "attention.output.dense", "intermediate.dense"],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "rsdora": {"use_rslora": True, "use_dora": True},
}


def reference(architecture: str, directory: Path, **settings: Any) -> Any:
    """A model of `transformers`, such as "LlamaForCausalLM", whose norms and biases matter; saved in a directory."""
    family = next(name for name in SHAPES if architecture.startswith(name))
    model_class = getattr(transformers, architecture)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**{**SMALL, **SHAPES[family], **settings}))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(directory)
    return model.eval()


def adapted(model: Any, family: str, **settings: Any) -> Any:
    """The same with an adapter of PEFT's whose every parameter has been moved."""
    values = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS[family], **settings}
    with_adapter = peft.get_peft_model(model, peft.LoraConfig(**values)).eval()
    move(with_adapter)
    return with_adapter


def move(model: torch.nn.Module) -> None:
    """Move every trainable parameter, so that B is not zero."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def batch() -> Tensor:
    return torch.randint(4, VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(1))


def loss_of(logits: Tensor) -> Tensor:
    rows = logits.flatten(0, -2)
    return F.cross_entropy(rows, torch.arange(len(rows)) % rows.shape[-1])


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-4 of the largest."""
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= 1e-4 * max(1e-3, float(theirs.abs().max()))


def low_rank_gradients(model: Transformer, name: str) -> dict[str, Tensor]:
    """Gradients of the adapter on one of our linear maps."""
    return {leaf: value.grad for leaf, value in adapter_of(model, name).named_parameters() if value.grad is not None}
