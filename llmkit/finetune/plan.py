"""What fine-tuning will cost, from the settings alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from llmkit.config.base import Facts
from llmkit.finetune.config import FinetuneConfig
from llmkit.finetune.objectives import ChatBatch, ChatObjective, ClassificationObjective, TextBatch
from llmkit.model.config import LABELLED, ModelConfig
from llmkit.model.facts import known_architecture
from llmkit.model.initialization import outline
from llmkit.store.stage import Plan
from llmkit.train.memory.machines import Machine
from llmkit.train.memory.plan import Planner, Work


def plan(config: FinetuneConfig, inputs: Mapping[str, Facts], machine: Machine) -> Plan:
    """What can be known before the data are opened: parameters, memory by part, and tokens where steps are set.

    Examples are reckoned as if each were as long as it may be. Activations are known for models trained in full on
    conversations or texts.

    Raises:
        ConfigError: the settings are for another number of devices.
    """
    facts = inputs["model"]
    longest = config.max_length or facts.get("context")
    if config.adapter is None and config.task in ("chat", "classification") and longest is not None:
        labels = tuple(inputs["data"].get("labels") or ("0", "1")) if config.head in LABELLED else ()
        architecture = known_architecture(facts.properties, config.head, labels)
        if architecture is not None:
            work, steps = _training_work(config, architecture, int(longest)), config.steps or None
            tokens = None if steps is None else steps * config.batch_size * int(longest)
            per_token = architecture.flops_per_token(int(longest))
            found = Planner(config, work, machine).plan(architecture.parameter_count(), steps, tokens, per_token)
            return replace(found, notes=[*found.notes, *_notes(config, longest)])
    return _outline(config, facts, longest)


def _notes(config: FinetuneConfig, longest: int | None) -> list[str]:
    if not config.steps or longest is None:
        return ["the number of steps follows from the data."]
    return ["tokens are reckoned as if every example were as long as it may be."]


def _training_work(config: FinetuneConfig, architecture: ModelConfig, length: int) -> Work:
    def batch(rows: int, length: int) -> ChatBatch | TextBatch:
        ids = torch.empty(rows, length, dtype=torch.int64, device="meta")
        if config.task == "classification":
            return TextBatch(ids, ids, ids[:, 0])
        return ChatBatch(ids, ids, ids.view(-1), ids.view(-1))

    objective = ChatObjective(config.z_loss) if config.task == "chat" else ClassificationObjective()
    return Work(outline(architecture), objective, batch, length)


def _outline(config: FinetuneConfig, facts: Facts, longest: int | None) -> Plan:
    """Without activations, from the number of parameters."""
    parameters = facts.get("parameters")
    if parameters is None:
        return Plan(notes=["the size of the model is not known before it is there."])
    trained, memory = parameters, {"weights": 4 * parameters}
    if config.adapter is not None:
        linears, layers = facts.get("linears"), facts.get("layers")
        if linears is None or layers is None:
            return Plan(notes=["the shape of the model is not known before it is there."])
        trained = config.adapter.parameter_count(linears, layers)
        memory = {
            "frozen weights": config.adapter.base_bytes(parameters, linears, layers),
            "adapter": 4 * trained,
        }
    memory |= {"gradients": 4 * trained, "optimizer": 8 * trained}
    notes = ["activations come on top.", *_notes(config, longest)]
    if config.adapter is not None and (config.adapter.trainable or config.new_tokens()):
        notes.append("modules that are trained in full beside the adapter come on top.")
    if not config.steps or longest is None:
        return Plan(trained, memory_bytes=memory, notes=notes)
    tokens = config.steps * config.batch_size * longest
    # The backward pass makes gradients of what is trained alone, beside those of the activations.
    active = facts.get("active_parameters") or parameters
    flops = (4.0 * active + 2.0 * min(trained, active)) * tokens
    return Plan(trained, tokens, flops, memory, notes)
