"""What pretraining will cost, from the settings alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from llmkit.config.base import Facts
from llmkit.model.config import ModelConfig
from llmkit.model.facts import known_architecture
from llmkit.model.initialization import outline
from llmkit.model.transformer import Transformer
from llmkit.pretrain.batches import Batch
from llmkit.pretrain.config import PretrainConfig
from llmkit.pretrain.course import Course
from llmkit.pretrain.objective import LanguageModelling
from llmkit.store.stage import Plan
from llmkit.train.memory.machines import Machine
from llmkit.train.memory.plan import Planner, Work


def plan(config: PretrainConfig, inputs: Mapping[str, Facts], machine: Machine) -> Plan:
    """Parameters, tokens, FLOPs (of matrix products: `ModelConfig.flops_per_sequence`) and memory by part.

    Raises:
        ConfigError: the settings are for another number of devices.
    """
    facts = config.model_facts(inputs)
    length = config.sequence_length or facts.get("context")
    course = None if length is None else config.course(length)
    architecture = _architecture(config, facts)
    if architecture is None or course is None:
        tokens = None if course is None else course.tokens
        return Plan(tokens=tokens, notes=["the size of the model is not known before its tokenizer is there."])
    planner = Planner(config, training_work(config, outline(architecture), course.longest), machine)
    per_token = flops_per_token(config, architecture, course)
    found = planner.plan(architecture.parameter_count(), config.steps, course.tokens, per_token)
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


def flops_per_token(config: PretrainConfig, architecture: ModelConfig, course: Course) -> float:
    """Training FLOPs, the mean over the tokens of the training, whose sequences may be of different lengths."""
    share = predicted_share(config, architecture)
    ends = [*(stretch.tokens_before for stretch in course.stretches[1:]), course.tokens]
    flops = sum(
        (end - stretch.tokens_before) * architecture.flops_per_token(stretch.length, predicted=share)
        for stretch, end in zip(course.stretches, ends, strict=True)
    )
    return flops / course.tokens


def training_work(config: PretrainConfig, model: Transformer, length: int) -> Work:
    """The shapes of what is trained, with sequences of `length` tokens; the model may be on "meta"."""
    share = predicted_share(config, model.config)

    def batch(rows: int, length: int) -> Batch:
        ids = torch.empty(rows, length, dtype=torch.int64, device="meta")
        if model.config.causal:
            return Batch(ids, ids.view(-1))
        chosen = torch.empty(max(1, round(share * rows * length)), dtype=torch.int64, device="meta")
        return Batch(ids, chosen, chosen)

    return Work(model, LanguageModelling(config.z_loss), batch, length)
