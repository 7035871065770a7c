"""The stage `pretrain`: tokens to a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

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
from llmkit.pretrain.batches import HeldOut, WindowSource
from llmkit.pretrain.config import PretrainConfig
from llmkit.pretrain.masking import Masking
from llmkit.pretrain.objective import LanguageModelling, held_out_loss
from llmkit.pretrain.plan import plan
from llmkit.store.stage import Context, Outcome
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.train.loop import Validation, train
from llmkit.train.parallel.placement import Draw, training_world
from llmkit.train.scaling import scale_initial_weights
from llmkit.train.world import World

__all__ = ["check", "plan", "run"]


def check(config: PretrainConfig, context: Context) -> list[Finding]:
    """Whether the tokens fill a training sequence and are those of the model's tokenizer."""
    known = {key: found.facts for key, found in context.inputs.items()}
    if any(needed.key not in known for needed in config.inputs()):
        return []
    facts = config.model_facts(known)
    causal, length = bool(facts["causal"]), config.sequence_length or int(facts["context"])
    try:
        tokenizer = _tokenizer(config, context)
        masked = config.chosen_objective(causal) == "masked"
        windows = TokenWindows(context.inputs["data"].path, "train", length, masked=masked)
    except LLMKitError as error:
        message = f"{error.where}: {error.message}" if error.where else error.message
        return [Finding(message, key="data", hint=error.hint)]
    if masked and tokenizer.mask_id is None:
        return [Finding("the tokenizer of these tokens has no mask token.", key="data")]
    if not len(windows):
        message = f"the {windows.shards.tokens:,} training tokens do not fill one sequence of {length:,}."
        return [Finding(message, key="data", hint="Set a shorter `sequence_length`, or use more text.")]
    return []


def _tokenizer(config: PretrainConfig, context: Context) -> Tokenizer:
    """The tokenizer of the finished model: that of the tokens, with the chat template of the model gone on from.

    Raises:
        ArtifactError: the tokens are not of the tokenizer of the model gone on from.
    """
    data = context.inputs["data"]
    ours = Tokenizer.load(data.tokenizer_directory)
    start = context.inputs.get("model")
    if start is None:
        return ours
    theirs = Tokenizer.load(start.tokenizer_directory)
    # Compared under one chat template: another template changes no token of a text.
    if ours.with_chat_template("").digest != theirs.with_chat_template("").digest:
        raise ArtifactError(
            f"the tokens were made with another tokenizer than that of `{start.value}`.",
            where=str(data.path),
            hint=f"Set `tokenizer: {start.value}` in the stage that makes the tokens.",
        )
    return theirs


def run(config: PretrainConfig, context: Context) -> Outcome:
    """Train on the tokens; the model and its tokenizer go to `model/`."""
    tokenizer = _tokenizer(config, context)
    world = training_world(config, context)
    model, draw = _open_model(config, context, tokenizer, world)
    length = config.sequence_length or model.config.context
    masking = _masking(config, context, model, tokenizer)
    data = context.inputs["data"].path
    windows = TokenWindows(data, "train", length, masked=masking is not None)
    source = WindowSource(
        windows,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch,
        seed=context.seed,
        masking=masking,
        part=world.part,
    )
    tokens = config.steps * config.batch_size * length
    say(
        f"{context.name}: {model.config.parameter_count():,} parameters learn from {tokens:,} tokens, "
        f"{tokens / windows.targets:.2g} times the {windows.targets:,} of the training split"
    )

    def save(trained: nn.Module, path: Path) -> None:
        assert isinstance(trained, Transformer)
        save_model(trained, path)
        tokenizer.save(path)

    result = train(
        model=model,
        objective=LanguageModelling(config.z_loss),
        source=source,
        config=config,
        context=context,
        save=save,
        validation=_validation(config, data, length, masking),
        flops_per_token=model.config.flops_per_token(length),
        world=world,
        draw=draw,
    )
    facts = {
        **read_model_facts(context.directory / "model"),
        "chat_template": tokenizer.chat_template is not None,
    }
    epochs = tokens / windows.targets
    return Outcome(["model/*"], Facts("model", facts), {"epochs": epochs, **result.summary})


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
    )


def _validation(config: PretrainConfig, data: Path, length: int, masking: Masking | None) -> Validation | None:
    """The measure on the validation split, or None where there is none."""
    if not (data / "validation").is_dir():
        return None
    windows = TokenWindows(data, "validation", length, masked=masking is not None)
    batches = config.evaluate_batches * config.batch_size // config.micro_batch
    held_out = HeldOut(windows, batches=batches, batch_size=config.micro_batch, masking=masking)
    if masking is not None:
        return held_out_loss(held_out, None)
    return held_out_loss(held_out, windows.targets / (math.log(2) * windows.shards.text_bytes))
