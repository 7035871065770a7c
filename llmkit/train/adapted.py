"""Training through an adapter, for every stage that offers it: how the base is kept, and what is saved."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from llmkit.console import say
from llmkit.model.adapters.attach import attach, find_attached, without_adapter
from llmkit.model.adapters.config import AdapterTraining
from llmkit.model.adapters.peft import save_adapter
from llmkit.model.save import save_model
from llmkit.model.transformer import Transformer
from llmkit.store.hub import PREFIX
from llmkit.store.stage import ResolvedInput
from llmkit.tokenizer.tokenizer import Tokenizer

ADAPTER = "adapter"
"""Folder of the adapter in a stage's artifact."""


def base_dtype(settings: AdapterTraining | None, precision: str) -> torch.dtype:
    """Data type that weights are opened in, and that a whole model is saved in."""
    if settings is None or settings.base_dtype == "fp32" or precision == "fp32":
        return torch.float32
    return torch.bfloat16


def attach_for_training(
    model: Transformer, settings: AdapterTraining, seed: int, name: str, extra: Sequence[str] = ()
) -> None:
    """Put a new adapter on a model that is about to be trained, in place.

    Args:
        model: opened in `base_dtype`, quantized if the settings say so.
        settings: of the adapter.
        seed: of its matrices.
        name: of the stage, for the message.
        extra: patterns of modules trained in full, beyond those of the settings.
    """
    chosen = settings.model_copy(update={"trainable": [*settings.trainable, *extra]})
    attach(model, chosen, seed)
    # The residual stream has the precision of the token vectors, and the kernels of norms want weights of the same.
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.to(model.embeddings.token.weight.dtype)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    say(f"{name}: {trained:,} parameters are trained, in the adapter and what is saved with it")


def as_reference(model: Transformer) -> AbstractContextManager[None]:
    """Within this context the model is the one that training started from: frozen as it is, or without its adapter."""
    return nullcontext() if find_attached(model) is None else without_adapter(model)


@dataclass(frozen=True)
class Saver:
    """Writes a model with its tokenizer: merged, or the adapter alone.

    What is written is the model that each method is given: the one that is trained, or a copy of a moment of it.

    Args:
        tokenizer: of the model.
        base: the model that training started from.
        dtype: of the weights of a whole model.
    """

    tokenizer: Tokenizer
    base: ResolvedInput
    dtype: torch.dtype

    def whole(self, model: nn.Module, path: Path) -> None:
        """A Hugging Face directory of the model with its adapter, if it has one, merged."""
        assert isinstance(model, Transformer)
        save_model(model, path, dtype=self.dtype)
        self.tokenizer.save(path)

    def adapter(self, model: nn.Module, path: Path) -> None:
        """A directory in PEFT's format."""
        assert isinstance(model, Transformer)
        save_adapter(model, path, base=base_name(self.base, path))
        self.tokenizer.save(path)

    def checkpoint(self, model: nn.Module, path: Path) -> None:
        """What a checkpoint holds for use: the adapter alone where there is one."""
        (self.whole if find_attached(model) is None else self.adapter)(model, path)


def base_name(base: ResolvedInput, directory: Path) -> str:
    """How an adapter in a directory names its base: a hub name, an absolute path as written, or one from there."""
    if base.value.startswith(PREFIX):
        return base.value.removeprefix(PREFIX)
    if base.artifact is None and Path(base.value).is_absolute():
        return base.value
    return os.path.relpath(base.model_directory.resolve(), directory.resolve())
