"""What pretraining will cost, from the settings alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from llmkit.config.base import Facts
from llmkit.model.config import ModelConfig
from llmkit.model.facts import known_architecture
from llmkit.model.transformer import Transformer
from llmkit.pretrain.batches import Batch
from llmkit.pretrain.config import PretrainConfig
from llmkit.pretrain.objective import LanguageModelling
from llmkit.store.stage import Plan
from llmkit.train.machines import Machine
from llmkit.train.plan import Planner, Work


def plan(config: PretrainConfig, inputs: Mapping[str, Facts], machine: Machine) -> Plan:
    """Parameters, tokens, FLOPs (of matrix products: `ModelConfig.flops_per_sequence`) and memory by part.

    Raises:
        ConfigError: the settings are for another number of devices.
    """
    facts = config.model_facts(inputs)
    length = config.sequence_length or facts.get("context")
    tokens = None if length is None else config.steps * config.batch_size * length
    architecture = _architecture(config, facts)
    if architecture is None or length is None:
        return Plan(tokens=tokens, notes=["the size of the model is not known before its tokenizer is there."])
    planner = Planner(config, training_work(config, architecture, length), machine)
    per_token = architecture.flops_per_token(length, predicted=predicted_share(config, architecture))
    found = planner.plan(architecture.parameter_count(), config.steps, per_token)
    if architecture.experts:
        note = f"{architecture.active_parameter_count():,} of the parameters work for each token."
        found = replace(found, notes=[note, *found.notes])
    return found


def _architecture(config: PretrainConfig, facts: Mapping[str, object]) -> ModelConfig | None:
    if isinstance(config.model, str):
        causal = facts.get("causal")
        return None if causal is None else known_architecture(facts, config.head(bool(causal)))
    vocab_size = facts.get("vocab_size")
    return config.architecture(vocab_size) if isinstance(vocab_size, int) else None


def predicted_share(config: PretrainConfig, architecture: ModelConfig) -> float:
    """Share of the tokens that get logits."""
    return 1.0 if architecture.causal else config.mask.mean_probability


def training_work(config: PretrainConfig, architecture: ModelConfig, length: int) -> Work:
    """The shapes of what is trained."""
    with torch.device("meta"):
        model = Transformer(architecture)
    share = predicted_share(config, architecture)

    def batch(rows: int, length: int) -> Batch:
        tokens = rows * length
        ids = torch.empty(rows, length, dtype=torch.int64, device="meta")
        if architecture.causal:
            return Batch(ids, ids.view(-1))
        chosen = torch.empty(max(1, round(share * tokens)), dtype=torch.int64, device="meta")
        return Batch(ids, chosen, chosen)

    return Work(model, LanguageModelling(config.z_loss), batch, length)
