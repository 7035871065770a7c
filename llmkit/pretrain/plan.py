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
    active = facts.get("active_parameters")
    notes = [] if active is None else [f"{active:,} of the parameters work for each token."]
    if isinstance(config.model, str):
        flops = None if tokens is None else 6.0 * (active or parameters) * tokens
        notes.append("FLOPs leave attention out: 6 for each parameter and token.")
        return Plan(parameters, tokens, flops, memory, notes)
    architecture = config.architecture(int(facts["vocab_size"]))
    assert length is not None
    if config.optimizer.name == "muon":
        memory["optimizer"] -= BYTES * _block_matrices(architecture)
    share = 1.0 if architecture.causal else config.mask.probability
    memory["activations"] = config.micro_batch * length * _activation_bytes(architecture, length, share)
    flops = float(config.steps * config.batch_size * architecture.flops_per_sequence(length))
    return Plan(parameters, tokens, flops, memory, notes)


def _block_matrices(config: ModelConfig) -> int:
    """Parameters in the matrices of the blocks, of which Muon keeps one moment and not two."""
    queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
    mlp = config.width * config.mlp_width * (3 if config.gated_mlp else 2)
    routed = config.experts * config.width * (3 * config.expert_width + 1)
    dense = _dense_layers(config)
    attention = config.width * (2 * queries + 2 * keys)
    return config.layers * attention + dense * mlp + (config.layers - dense) * routed


def _dense_layers(config: ModelConfig) -> int:
    return len(config.dense_layers) if config.experts else config.layers


def _activation_bytes(config: ModelConfig, length: int, predicted: float) -> int:
    """Bytes kept for the backward pass for each token, with the share `predicted` of tokens getting logits.

    Each norm keeps its input in float32, and an RMS norm the normed one too; one of queries and keys its input in
    bfloat16 and that. In bfloat16 a block keeps the inputs of
    its projections, queries, keys, values and what they mix to, what its MLP multiplies, and, where sequences are short
    enough for whole score matrices to be the fastest, these. Logits are there once more as their gradient. Routed
    experts keep the same as an MLP for each one that a token goes through and what each gives; their router its input
    and its scores in float32, the latter four times over where the use of experts is balanced.
    """
    queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
    norms = 2 * 4 * config.width * (2 if config.norm == "rms" else 1)
    norms += 0 if config.qk_norm == "none" else 6 * (queries + keys)
    attention = config.width + 2 * queries + 2 * keys
    scores = config.heads * length if length <= 8 * config.head_width else 0
    mlp = config.width + config.mlp_width * (4 if config.gated_mlp else 2)
    dense, chosen = _dense_layers(config), config.experts_per_token
    routed = 2 * chosen * (2 * config.width + (7 if config.activation == "clamped_swiglu" else 4) * config.expert_width)
    routed += 4 * config.width + 4 * config.experts * (4 if config.router_loss_weight else 1) + 32 * chosen
    blocks = config.layers * (norms + 2 * (attention + scores)) + dense * 2 * mlp + (config.layers - dense) * routed
    return int(blocks + 8 * config.width + predicted * 2 * 2 * config.vocab_size)
