"""The model that is fine-tuned, whole or through an adapter."""

from __future__ import annotations

from typing import Any

from llmkit.console import say
from llmkit.finetune.config import FinetuneConfig
from llmkit.finetune.prepare import Prepared
from llmkit.model.adapters.vocabulary import grow_vocabulary
from llmkit.model.load import load_model
from llmkit.model.transformer import Transformer
from llmkit.store.stage import Context
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.train.adapted import attach_for_training, base_dtype


def open_model(config: FinetuneConfig, context: Context, prepared: Prepared) -> Transformer:
    """The model under the task's head, with rows for new tokens, the ids in its config that end a turn and pad, and the
    adapter where there is one. What is trained is in float32."""
    settings, tokenizer = config.adapter, prepared.tokenizer
    model = load_model(
        context.inputs["model"].model_directory,
        head=config.head,
        labels=None if config.task == "chat" else prepared.labels,
        dtype=base_dtype(settings, config.precision),
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
        extra = _grown_modules(model) if tokenizer.vocab_size > known else []
        attach_for_training(model, settings, context.seed, context.name, extra)
    return model


def _grown_modules(model: Transformer) -> list[str]:
    own = model.config.head in ("causal-lm", "masked-lm") and not model.config.tie_embeddings
    return ["embeddings.token", "head.projection"] if own else ["embeddings.token"]


def _special_ids(model: Transformer, tokenizer: Tokenizer, config: FinetuneConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if model.config.pad_id is None:
        settings["pad_id"] = tokenizer.pad_id
    end = tokenizer.end_of_turn_id
    if config.task == "chat" and end is not None:
        settings["eos_ids"] = tuple(dict.fromkeys([end, *model.config.eos_ids]))
    return settings
