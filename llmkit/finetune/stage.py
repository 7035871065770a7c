"""The fine-tuning stage: encode the data, attach the head, train, save."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from llmkit.config.base import Facts, Finding
from llmkit.console import say, warn
from llmkit.errors import ConfigError, DataError, LLMKitError
from llmkit.finetune.batches import BucketedBatches, Indices, evaluation_indices
from llmkit.finetune.config import FinetuneConfig
from llmkit.finetune.encoding import Sequences
from llmkit.finetune.model import open_model
from llmkit.finetune.objectives import (
    ChatObjective,
    ClassificationObjective,
    collate_chat,
    collate_packed,
    collate_texts,
    mean_loss,
)
from llmkit.finetune.plan import plan
from llmkit.finetune.prepare import (
    Prepared,
    Rows,
    choose_labels,
    describe_losses,
    open_tokenizer,
    prepare,
    read_rows,
    sequence_length,
)
from llmkit.finetune.tags import TagObjective, collate_tags
from llmkit.model.facts import read_model_facts
from llmkit.store.files import write_json_atomic
from llmkit.store.stage import Context, Outcome
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.train.adapted import ADAPTER, Saver, base_dtype
from llmkit.train.config import TrainConfig
from llmkit.train.contract import Objective
from llmkit.train.loop import train
from llmkit.train.memory.plan import Work
from llmkit.train.memory.settle import settle, with_fitting_micro_batch
from llmkit.train.parallel.placement import training_world
from llmkit.train.parallel.whole import on_main
from llmkit.train.world import World

__all__ = ["check", "plan", "run"]

REPORT = "report.json"
CHECKED_ROWS = 200
"""Rows that `check` encodes."""
_PROBE = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello yourself"})


def run(config: FinetuneConfig, context: Context) -> Outcome:
    """Train on the examples; the model and its tokenizer go to `model/`, counts of the examples to `report.json`.

    Where an adapter is trained, it goes to `adapter/` and the model with the adapter merged to `model/`, or the adapter
    alone to `model/`.
    """
    world = training_world(config, context)
    return with_fitting_micro_batch(config, context, world, lambda: _run(config, context, world))


def _run(config: FinetuneConfig, context: Context, world: World) -> Outcome:
    prepared = prepare(config, context)
    model = open_model(config, context, prepared)
    scaling = model.config.rope_scaling
    if config.packing and scaling is not None and scaling.depends_on_length:
        raise ConfigError(
            f"this model's rotary positions depend on how long a sequence is ({scaling.kind}), so its conversations "
            "cannot be packed.",
            where=context.place("packing"),
            hint="Remove the key.",
        )
    saver = Saver(prepared.tokenizer, context.inputs["model"], base_dtype(config.adapter, config.precision))
    pad_id = prepared.tokenizer.pad_id or 0
    objective, collator = _learning(config, prepared)

    def collate(examples: Sequences, indices: Indices) -> Any:
        return collator(examples, indices, pad_id)

    lengths = prepared.train.lengths
    longest = np.argsort(-np.asarray(lengths), kind="stable")
    work = Work(model, objective, lambda rows, _: collate(prepared.train, np.resize(longest, rows)), int(max(lengths)))
    config = settle(config, work, context, world)
    source = BucketedBatches(
        lengths,
        lambda indices: collate(prepared.train, indices),
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch,
        seed=context.seed,
        capacity=config.micro_batch * int(max(lengths)) if config.packing else None,
        part=world.part,
    )
    resolved = config.resolved(config.steps_for(source.steps_per_epoch))
    for finding in TrainConfig.check(resolved, {}):
        raise ConfigError(finding.message, where=context.place(finding.key), hint=finding.hint)
    epochs = resolved.steps / source.steps_per_epoch
    _report(prepared, context, resolved.steps, epochs)
    held_out = evaluation_indices(
        prepared.validation.lengths, batch_size=config.micro_batch, batches=_validation_batches(config)
    )
    validation = mean_loss(objective, lambda: (collate(prepared.validation, indices) for indices in held_out))

    counts = prepared.train.counts
    result = train(
        model=model,
        objective=objective,
        source=source,
        config=resolved,
        context=context,
        save=saver.checkpoint if config.saves_adapter_alone else saver.whole,
        save_checkpoint=saver.checkpoint,
        validation=validation if held_out else None,
        flops_per_token=model.config.flops_per_token(max(1, counts.tokens // counts.kept)),
        world=world,
    )
    if config.adapter is not None and config.adapter.merge:
        on_main(partial(saver.adapter, model), model, world)(context.directory / ADAPTER)
    summary = {"examples": counts.kept, "dropped": counts.dropped(), "epochs": epochs, **result.summary}
    return Outcome(["model/*", f"{ADAPTER}/*"], _facts(config, context, prepared), summary)


def _learning(config: FinetuneConfig, prepared: Prepared) -> tuple[Objective, Callable[[Sequences, Indices, int], Any]]:
    """What is minimised, and how its micro-batches are made."""
    if config.task == "chat":
        return ChatObjective(config.z_loss), collate_packed if config.packing else collate_chat
    if config.task == "classification":
        return ClassificationObjective(), collate_texts
    return TagObjective(prepared.labels), collate_tags


def _facts(config: FinetuneConfig, context: Context, prepared: Prepared) -> Facts:
    alone = config.saves_adapter_alone
    known = context.inputs["model"].facts.properties if alone else read_model_facts(context.directory / "model")
    chats = prepared.tokenizer.chat_template is not None
    return Facts("adapter" if alone else "model", {**known, "chat_template": chats})


def _validation_batches(config: FinetuneConfig) -> int:
    return -(-config.evaluate_batches * config.batch_size // config.micro_batch)


def _report(prepared: Prepared, context: Context, steps: int, epochs: float) -> None:
    splits = {"train": prepared.train, "validation": prepared.validation}
    report = {
        "max_length": prepared.max_length,
        "labels": list(prepared.labels),
        "steps": steps,
        "epochs": epochs,
        "splits": {name: examples.counts.row() for name, examples in splits.items()},
    }
    if context.is_main:
        write_json_atomic(context.directory / REPORT, report)
    counts = prepared.train.counts
    say(
        f"{context.name}: {counts.kept:,} examples, {counts.tokens:,} tokens, of which {counts.targets:,} are learned; "
        f"{steps:,} steps are {epochs:.3g} epochs"
    )
    for name, examples in splits.items():
        if examples.counts.dropped():
            dropped = f"{examples.counts.dropped():,} of the {examples.counts.rows:,} {name} examples"
            warn(f"{context.name}: {dropped} are left out: {describe_losses(examples)}")
    if not len(prepared.validation):
        warn(f"{context.name}: there are no validation examples, so the loss on held-out data is not measured")


def check(config: FinetuneConfig, context: Context) -> list[Finding]:
    """Open tokenizer and data, encode some of the rows, and tell what would be left out."""
    found: list[Finding] = []
    tokenizer: Tokenizer | None = None
    rows: Rows | None = None
    if "model" in context.inputs and ("chat_template" in context.inputs or not _template_is_file(config)):
        try:
            tokenizer = open_tokenizer(config, context)
            found += _check_template(config, tokenizer)
        except LLMKitError as error:
            found.append(_finding("model" if config.chat_template is None else "chat_template", error))
    if "data" in context.inputs:
        try:
            rows = read_rows(config, context, "train")
            found += _check_rows(config, context, rows)
        except LLMKitError as error:
            found.append(_finding("data", error))
    if rows and tokenizer is not None and not any(finding.severity == "error" for finding in found):
        try:
            found += _check_encoding(config, context, tokenizer, rows)
        except LLMKitError as error:
            found.append(_finding("data", error))
    return found


def _template_is_file(config: FinetuneConfig) -> bool:
    return any(needed.key == "chat_template" for needed in config.inputs())


def _finding(key: str, error: LLMKitError) -> Finding:
    return Finding(f"{error.where}: {error.message}" if error.where else error.message, key=key, hint=error.hint)


def _check_template(config: FinetuneConfig, tokenizer: Tokenizer) -> list[Finding]:
    if config.task != "chat":
        return []
    key = "model" if config.chat_template is None else "chat_template"
    try:
        ids, mask = tokenizer.render_conversation(_PROBE)
    except DataError as error:
        return [Finding(error.message, key=key, hint=error.hint)]
    if any(token in tokenizer.special_ids for token, said in zip(ids, mask, strict=True) if said):
        return []
    return [
        Finding(
            "in the chat template the assistant ends its turn with no special token of the tokenizer, so the model "
            "does not learn when to stop.",
            key=key,
            hint="End the assistant's turns with {{ eos_token }}, inside the generation block if there is one.",
            severity="warning",
        )
    ]


def _check_rows(config: FinetuneConfig, context: Context, rows: Rows) -> list[Finding]:
    if not len(rows):
        return [Finding("there are no training examples.", key="data")]
    if config.task != "chat":
        labels = choose_labels(config, rows, context)
        unknown = sorted(read_rows(config, context, "validation").labels - set(labels))
        if unknown:
            return [Finding(f"the label {unknown[0]!r} occurs in the validation split alone.", key="data")]
    steps = -(-len(rows) // config.batch_size)
    return list(TrainConfig.check(config.with_steps(config.steps_for(steps)), {}))


def _check_encoding(config: FinetuneConfig, context: Context, tokenizer: Tokenizer, rows: Rows) -> list[Finding]:
    """Encode rows from all over the split; more is left out later where more is too long."""
    max_length = sequence_length(config, context.inputs["model"])
    labels = () if config.task == "chat" else choose_labels(config, rows, context)
    numbers = sorted({len(rows) * index // CHECKED_ROWS for index in range(CHECKED_ROWS)})
    examples = rows.encode(tokenizer, config, max_length, labels, numbers)
    counts = examples.counts
    seen = f"the {counts.rows:,} rows looked at, out of {len(rows):,},"
    hint = f"The longest of them has {counts.longest:,} tokens, and {max_length:,} are used."
    if not counts.kept:
        return [Finding(f"none of {seen} can be learned from: {describe_losses(examples)}.", key="data", hint=hint)]
    warnings = []
    if counts.dropped():
        message = f"{counts.dropped():,} of {seen} would be left out: {describe_losses(examples)}."
        warnings.append(Finding(message, key="max_length", hint=hint, severity="warning"))
    if counts.truncated:
        message = f"{counts.truncated:,} of {seen} would be cut at the end."
        warnings.append(Finding(message, key="max_length", hint=hint, severity="warning"))
    return warnings
