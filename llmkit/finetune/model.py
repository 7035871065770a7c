"""The model that is fine-tuned, whole or through an adapter, and the directories that it is saved in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmkit.console import say
from llmkit.finetune.config import FinetuneConfig
from llmkit.finetune.prepare import Prepared
from llmkit.model.adapters.attach import attach, find_attached
from llmkit.model.adapters.config import AdapterTraining
from llmkit.model.adapters.peft import save_adapter
from llmkit.model.adapters.vocabulary import grow_vocabulary
from llmkit.model.load import load_model
from llmkit.model.save import save_model
from llmkit.model.transformer import Transformer
from llmkit.store.hub import PREFIX
from llmkit.store.stage import Context, ResolvedInput
from llmkit.tokenizer.tokenizer import Tokenizer

ADAPTER = "adapter"
"""Folder of the adapter in the stage's artifact."""


def open_model(config: FinetuneConfig, context: Context, prepared: Prepared) -> Transformer:
    """The model under the task's head, with rows for new tokens, the ids in its config that end a turn and pad, and the
    adapter where there is one. What is trained is in float32."""
    settings, tokenizer = config.adapter, prepared.tokenizer
    model = load_model(
        context.inputs["model"].model_directory,
        head=config.head,
        labels=None if config.task == "chat" else prepared.labels,
        dtype=base_dtype(config),
        quantize=None if settings is None else settings.quantization,
        quantize_head=False,
        seed=context.seed,
    )
    if model.new_parameters:
        say(f"{context.name}: new in this model: {', '.join(model.new_parameters)}")
    known = prepared.known_tokens
    if tokenizer.vocab_size > known:
        grow_vocabulary(model, tokenizer.vocab_size, known=known)
        say(f"{context.name}: {tokenizer.vocab_size - known} new tokens begin as the mean of the others")
    model.config = model.config.model_copy(update=_special_ids(model, tokenizer, config))
    if settings is not None:
        _attach(model, settings, context.seed, grown=tokenizer.vocab_size > known)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        say(f"{context.name}: {trained:,} parameters are trained, in the adapter and what is saved with it")
    return model


def base_dtype(config: FinetuneConfig) -> torch.dtype:
    """Data type that weights are opened in."""
    settings = config.adapter
    if settings is None or settings.base_dtype == "fp32" or config.precision == "fp32":
        return torch.float32
    return torch.bfloat16


def _attach(model: Transformer, settings: AdapterTraining, seed: int, *, grown: bool) -> None:
    extra = ["embeddings.token"] if grown else []
    if grown and model.config.head in ("causal-lm", "masked-lm") and not model.config.tie_embeddings:
        extra.append("head.projection")
    chosen = settings.model_copy(update={"trainable": [*settings.trainable, *extra]})
    attach(model, chosen, seed)
    # The residual stream has the precision of the token vectors, and the kernels of norms want weights of the same.
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.to(model.embeddings.token.weight.dtype)


def _special_ids(model: Transformer, tokenizer: Tokenizer, config: FinetuneConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if model.config.pad_id is None:
        settings["pad_id"] = tokenizer.pad_id
    end = tokenizer.end_of_turn_id
    if config.task == "chat" and end is not None:
        settings["eos_ids"] = tuple(dict.fromkeys([end, *model.config.eos_ids]))
    return settings


@dataclass(frozen=True)
class Saver:
    """Writes the model with its tokenizer: merged, or the adapter alone.

    Args:
        model: as trained.
        tokenizer: of the model.
        base: the model that training started from.
        dtype: of the weights of a whole model.
    """

    model: Transformer
    tokenizer: Tokenizer
    base: ResolvedInput
    dtype: torch.dtype

    def whole(self, path: Path) -> None:
        """A Hugging Face directory of the model with its adapter, if it has one, merged."""
        save_model(self.model, path, dtype=self.dtype)
        self.tokenizer.save(path)

    def adapter(self, path: Path) -> None:
        """A directory in PEFT's format."""
        save_adapter(self.model, path, base=base_name(self.base, path))
        self.tokenizer.save(path)

    def checkpoint(self, path: Path) -> None:
        """What a checkpoint holds for use: the adapter alone where there is one."""
        (self.whole if find_attached(self.model) is None else self.adapter)(path)


def base_name(base: ResolvedInput, directory: Path) -> str:
    """How an adapter in a directory names its base: a hub name, an absolute path as written, or one from there."""
    if base.value.startswith(PREFIX):
        return base.value.removeprefix(PREFIX)
    if base.artifact is None and Path(base.value).is_absolute():
        return base.value
    return os.path.relpath(base.model_directory.resolve(), directory.resolve())
