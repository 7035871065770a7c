"""What pretraining will cost, from the settings alone."""

from __future__ import annotations

from collections.abc import Mapping

from llmkit.config.base import Facts
from llmkit.model.config import ModelConfig
from llmkit.pretrain.config import PretrainConfig
from llmkit.store.stage import Plan

BYTES = 4
"""Bytes of a weight, of its gradient, and of each of the optimizer's moments."""


def plan(config: PretrainConfig, inputs: Mapping[str, Facts]) -> Plan:
    """Parameters, tokens, FLOPs and memory by part.

    FLOPs are those of matrix products (`ModelConfig.flops_per_sequence`). Activations are reckoned for bf16 and without
    the workspace of single operations; of a model that training goes on from only weights and optimizer are known.
    """
    facts = config.model_facts(inputs)
    parameters, length = facts.get("parameters"), config.sequence_length or facts.get("context")
    tokens = None if length is None else config.steps * config.batch_size * length
    if parameters is None:
        return Plan(
            tokens=tokens, notes=["The number of parameters follows from the tokenizer, which is not there yet."]
        )
    memory = {"weights": BYTES * parameters, "gradients": BYTES * parameters, "optimizer": 2 * BYTES * parameters}
    if isinstance(config.model, str):
        flops = None if tokens is None else 6.0 * parameters * tokens
        return Plan(parameters, tokens, flops, memory, ["FLOPs leave attention out: 6 for each parameter and token."])
    architecture = config.architecture(int(facts["vocab_size"]))
    assert length is not None
    if config.optimizer.name == "muon":
        memory["optimizer"] -= BYTES * _block_matrices(architecture)
    share = 1.0 if architecture.causal else config.mask.probability
    memory["activations"] = config.micro_batch * length * _activation_bytes(architecture, length, share)
    flops = float(config.steps * config.batch_size * architecture.flops_per_sequence(length))
    return Plan(parameters, tokens, flops, memory)


def _block_matrices(config: ModelConfig) -> int:
    """Parameters in the matrices of the blocks, of which Muon keeps one moment and not two."""
    queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
    mlp = config.width * config.mlp_width * (3 if config.gated_mlp else 2)
    return config.layers * (config.width * (2 * queries + 2 * keys) + mlp)


def _activation_bytes(config: ModelConfig, length: int, predicted: float) -> int:
    """Bytes kept for the backward pass for each token, with the share `predicted` of tokens getting logits.

    Each norm keeps its input in float32, and an RMS norm the normed one too. In bfloat16 a block keeps the inputs of
    its projections, queries, keys, values and what they mix to, what its MLP multiplies, and, where sequences are short
    enough for whole score matrices to be the fastest, these. Logits are there once more as their gradient.
    """
    queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
    norms = 2 * 4 * config.width * (2 if config.norm == "rms" else 1)
    attention = config.width + 2 * queries + 2 * keys
    scores = config.heads * length if length <= 8 * config.head_width else 0
    mlp = config.width + config.mlp_width * (4 if config.gated_mlp else 2)
    block = norms + 2 * (attention + scores + mlp)
    return int(config.layers * block + 8 * config.width + predicted * 2 * 2 * config.vocab_size)
