"""The stage `pretrain`: tokens to a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmkit.config.base import Facts, Finding
from llmkit.console import say
from llmkit.data.loader import TokenWindows
from llmkit.errors import ArtifactError, LLMKitError
from llmkit.model.facts import read_model_facts
from llmkit.model.initialization import initialize, outline
from llmkit.model.load import load_model
from llmkit.model.save import save_model
from llmkit.model.transformer import Transformer
from llmkit.pretrain.batches import HeldOut
from llmkit.pretrain.config import PretrainConfig
from llmkit.pretrain.epochs import mixture_of
from llmkit.pretrain.masking import Masking
from llmkit.pretrain.objective import HeldOutText, LanguageModelling, held_out_loss
from llmkit.pretrain.plan import flops_per_token, plan, training_work
from llmkit.pretrain.stream import TrainingStream
from llmkit.store.stage import Context, Outcome
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.train.loop import Validation, train
from llmkit.train.memory.settle import settle, with_fitting_micro_batch
from llmkit.train.optimizers.scaling import scale_initial_weights
from llmkit.train.parallel.placement import Draw, training_world
from llmkit.train.world import World

__all__ = ["check", "plan", "run"]


def check(config: PretrainConfig, context: Context) -> list[Finding]:
    """Whether the tokens fill a training sequence and are those of the model's tokenizer."""
    known = {key: found.facts for key, found in context.inputs.items()}
    if any(needed.key not in known for needed in config.inputs()):
        return []
    facts = config.model_facts(known)
    course = config.course(int(facts["context"]))
    causal, length = bool(facts["causal"]), course.longest
    masked, key = config.chosen_objective(causal) == "masked", next(iter(config.sources))
    try:
        tokenizer = _tokenizer(config, context)
        if masked and config.mask.whole_words:
            tokenizer.word_starts()
        found, opened = [], []
        for key in config.sources:
            windows = TokenWindows(context.inputs[key].path, "train", length, masked=masked)
            opened.append(windows)
            if not len(windows):
                message = f"the {windows.shards.tokens:,} training tokens do not fill one sequence of {length:,}."
                hint = "Set a shorter `sequence_length`, or use more text."
                found.append(Finding(message, key=key, hint=hint))
        if not found:
            mixture_of(config, course, opened)
    except LLMKitError as error:
        message = f"{error.where}: {error.message}" if error.where else error.message
        return [Finding(message, key=key, hint=error.hint)]
    if masked and tokenizer.mask_id is None:
        return [Finding("the tokenizer of these tokens has no mask token.", key=key)]
    return found


def _tokenizer(config: PretrainConfig, context: Context) -> Tokenizer:
    """The tokenizer of the finished model: that of the tokens, with the chat template of the model gone on from.

    Raises:
        ArtifactError: the tokens are not of the tokenizer of the model gone on from, or those of one source of another
            than those of the next.
    """
    data, *others = (context.inputs[key] for key in config.sources)
    ours = Tokenizer.load(data.tokenizer_directory)
    for other in others:
        if Tokenizer.load(other.tokenizer_directory).with_chat_template("").digest != _bare_digest(ours):
            raise ArtifactError(
                f"the tokens of `{other.value}` were made with another tokenizer than those of `{data.value}`.",
                where=str(other.path),
                hint="Name the same `tokenizer` in the stages that make them.",
            )
    start = context.inputs.get("model")
    if start is None:
        return ours
    theirs = Tokenizer.load(start.tokenizer_directory)
    if _bare_digest(ours) != _bare_digest(theirs):
        raise ArtifactError(
            f"the tokens were made with another tokenizer than that of `{start.value}`.",
            where=str(data.path),
            hint=f"Set `tokenizer: {start.value}` in the stage that makes the tokens.",
        )
    return theirs


def _bare_digest(tokenizer: Tokenizer) -> str:
    """The digest without chat template, which changes no token of a text."""
    return tokenizer.with_chat_template("").digest


def run(config: PretrainConfig, context: Context) -> Outcome:
    """Train on the tokens; the model and its tokenizer go to `model/`."""
    world = training_world(config, context)
    return with_fitting_micro_batch(config, context, world, lambda: _run(config, context, world))


def _run(config: PretrainConfig, context: Context, world: World) -> Outcome:
    tokenizer = _tokenizer(config, context)
    model, draw = _open_model(config, context, tokenizer, world)
    config = config.resolved(model.config.context)
    course = config.course(model.config.context)
    smallest = math.gcd(*(stretch.batch_size for stretch in course.stretches))
    config = settle(config, training_work(config, model, course.longest), context, world, smallest)
    masking = _masking(config, context, model, tokenizer)
    windows = [
        TokenWindows(context.inputs[key].path, "train", course.longest, masked=masking is not None)
        for key in config.sources
    ]
    mixture = mixture_of(config, course, windows)
    names = _names(config, context)
    source = TrainingStream(
        windows,
        course,
        mixture,
        micro_batch_size=config.micro_batch,
        seed=context.seed,
        masking=masking,
        apart=config.documents == "apart",
        part=world.part,
    )
    epochs = dict(zip(names, source.epochs().tolist(), strict=True))
    say(
        f"{context.name}: {model.config.parameter_count():,} parameters learn from {course.tokens:,} tokens; "
        + ", ".join(f"{name} is read {times:.2g} times" for name, times in epochs.items())
    )

    def save(trained: nn.Module, path: Path) -> None:
        assert isinstance(trained, Transformer)
        save_model(trained, path)
        tokenizer.save(path)

    result = train(
        model=model,
        objective=LanguageModelling(config.z_loss, names),
        source=source,
        config=config,
        context=context,
        save=save,
        validation=_validation(config, context, masking, dict(zip(names, mixture.mean_shares().tolist(), strict=True))),
        flops_per_token=flops_per_token(config, model.config, course),
        world=world,
        draw=draw,
    )
    facts = {
        **read_model_facts(context.directory / "model"),
        "chat_template": tokenizer.chat_template is not None,
    }
    summary: dict[str, Any] = {"epochs": max(epochs.values())}
    if len(names) > 1:
        summary |= {f"epochs/{name}": times for name, times in epochs.items()}
        summary |= {f"sequences/{name}": count for name, count in zip(names, source.counts().tolist(), strict=True)}
    return Outcome(["model/*"], Facts("model", facts), {**summary, **result.summary})


def _names(config: PretrainConfig, context: Context) -> list[str]:
    """A short name for each source, all of them different."""
    labels = [context.inputs[key].label for key in config.sources]
    return [label if labels.count(label) == 1 else f"{label}-{n}" for n, label in enumerate(labels, 1)]


def _open_model(
    config: PretrainConfig, context: Context, tokenizer: Tokenizer, world: World
) -> tuple[Transformer, Draw | None]:
    """A new model, or the one gone on from, with the head of the objective and weights in float32.

    Where ranks share its weights, a new one has none yet, and what draws them comes with it.
    """
    if isinstance(config.model, str):
        start = context.inputs["model"]
        head = config.head(bool(read_model_facts(start.model_directory)["causal"]))
        return load_model(start.model_directory, head=head, dtype=torch.float32, seed=context.seed), None
    ends = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    architecture = config.architecture(
        tokenizer.vocab_size, pad_id=tokenizer.pad_id, bos_id=tokenizer.bos_id, eos_ids=ends
    )

    def draw(model: nn.Module, put: Callable[[Tensor, Tensor], object]) -> None:
        assert isinstance(model, Transformer)
        initialize(model, context.seed, put=put)
        if config.optimizer.base_width is not None:
            scale_initial_weights(model, config.optimizer.base_width)

    if world.sizes.shard * world.sizes.tensor > 1:
        return outline(architecture), draw
    model = Transformer(architecture)
    draw(model, Tensor.copy_)
    return model, None


def _masking(config: PretrainConfig, context: Context, model: Transformer, tokenizer: Tokenizer) -> Masking | None:
    if config.chosen_objective(model.config.causal) == "causal":
        return None
    assert tokenizer.mask_id is not None
    return Masking(
        config.mask,
        mask_id=tokenizer.mask_id,
        vocab_size=tokenizer.vocab_size,
        special_ids=tokenizer.special_ids,
        seed=context.seed,
        word_starts=tokenizer.word_starts() if config.mask.whole_words else None,
    )


def _validation(
    config: PretrainConfig, context: Context, masking: Masking | None, shares: Mapping[str, float]
) -> Validation | None:
    """The measure on the validation splits, or None where there is none."""
    batches, length = config.evaluate_batches * config.batch_size // config.micro_batch, config.sequence_length
    assert length is not None
    sources = {}
    for key, (name, share) in zip(config.sources, shares.items(), strict=True):
        data = context.inputs[key].path
        if not (data / "validation").is_dir():
            continue
        windows = TokenWindows(data, "validation", length, masked=masking is not None)
        held_out = HeldOut(
            windows,
            batches=batches,
            batch_size=config.micro_batch,
            masking=masking,
            apart=config.documents == "apart",
        )
        bits = None if masking is not None else windows.targets / (math.log(2) * windows.shards.text_bytes)
        # A source that is not trained on is measured too.
        sources[name] = HeldOutText(held_out, bits, max(share, 1e-9))
    return held_out_loss(sources) if sources else None
