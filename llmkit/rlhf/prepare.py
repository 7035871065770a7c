"""What a stage of alignment opens before it trains: tokenizer, limits, examples, models."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch

from llmkit.config.base import Finding
from llmkit.console import say, warn
from llmkit.data.sampling import EpochSampler
from llmkit.errors import ConfigError, DataError
from llmkit.model.adapters.attach import find_attached
from llmkit.model.config import Head
from llmkit.model.facts import read_model_facts
from llmkit.model.load import load_model
from llmkit.model.transformer import Transformer
from llmkit.rlhf.config import RLHFConfig
from llmkit.rlhf.encoding import Examples, Pair, Prompt, load_pairs, load_prompts
from llmkit.rlhf.scoring import RewardModelScorer, Scorer
from llmkit.store.stage import Context
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.train.adapted import attach_for_training, base_dtype
from llmkit.train.seeding import derive_seed

Row = TypeVar("Row", Pair, Prompt)


def open_tokenizer(context: Context, key: str = "model") -> Tokenizer:
    """The tokenizer of a model input.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    return Tokenizer.load(context.inputs[key].tokenizer_directory)


def length_limit(config: RLHFConfig, context: Context) -> int:
    """Most tokens of a conversation (reward_model, dpo) or of a prompt (ppo, grpo).

    Raises:
        ConfigError: no prompt would fit beside the answer.
    """
    longest = int(read_model_facts(context.inputs["model"].model_directory)["context"])
    if not config.online:
        return min(longest, config.max_length or longest)
    room = longest - config.rollouts.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"{config.rollouts.max_new_tokens:,} new tokens leave no room for a prompt in the model's context of "
            f"{longest:,}.",
            where=context.place("rollout.max_new_tokens"),
        )
    return min(room, config.rollouts.max_prompt_length or room)


def describe_long(config: RLHFConfig, examples: Examples[Any], limit: int) -> Finding | None:
    """What is to be said about examples beyond the limit: an error, or a warning where they are left out."""
    if not examples.dropped:
        return None
    total, drop = len(examples.rows) + len(examples.dropped), config.too_long == "drop"
    named = ", ".join(examples.dropped[:3]) + (", ..." if len(examples.dropped) > 3 else "")
    what = "prompts" if config.online else "preferences"
    return Finding(
        f"{len(examples.dropped):,} of {total:,} {what} are longer than {limit:,} tokens ({named}).",
        key="data",
        hint="They are left out." if drop else "Raise the limit, or leave them out with `too_long: drop`.",
        severity="warning" if drop else "error",
    )


def train_and_validation_pairs(
    config: RLHFConfig, context: Context, tokenizer: Tokenizer
) -> tuple[Examples[Pair], list[Pair]]:
    """Preferences to learn from, and those of the validation split that are measured.

    Raises:
        DataError: there are none, or some are malformed or longer than they may be.
    """
    limit, source = length_limit(config, context), context.inputs["data"]
    found = load_pairs(source, "train", tokenizer, limit)
    held_out = load_pairs(source, "validation", tokenizer, limit)
    return _accepted(config, context, found, limit), _measured(config, context, held_out, limit)


def train_and_validation_prompts(
    config: RLHFConfig, context: Context, tokenizer: Tokenizer
) -> tuple[Examples[Prompt], list[Prompt]]:
    """Prompts to answer, and those of the validation split that are measured.

    Raises:
        DataError: there are none, or some are malformed or longer than they may be.
    """
    limit, source = length_limit(config, context), context.inputs["data"]
    found = load_prompts(source, "train", tokenizer, limit)
    held_out = load_prompts(source, "validation", tokenizer, limit)
    return _accepted(config, context, found, limit), _measured(config, context, held_out, limit)


def _accepted(config: RLHFConfig, context: Context, examples: Examples[Row], limit: int) -> Examples[Row]:
    _report_long(config, context, examples, limit)
    if not examples.rows:
        raise DataError("there are no training examples.", where=context.place("data"))
    say(f"{context.name}: {len(examples.rows):,} training examples")
    return examples


def _measured(config: RLHFConfig, context: Context, examples: Examples[Row], limit: int) -> list[Row]:
    """As many held-out examples as are measured each time, chosen by the seed."""
    _report_long(config, context, examples, limit)
    rows = examples.rows
    if not rows:
        warn(f"{context.name}: there are no validation examples, so nothing is measured on held-out data")
        return []
    count = min(len(rows), config.evaluate_batches * config.batch_size)
    chosen = EpochSampler(len(rows), count, derive_seed(context.seed, "validation")).indices(0)
    return [rows[row] for row in sorted(chosen.tolist())]


def _report_long(config: RLHFConfig, context: Context, examples: Examples[Row], limit: int) -> None:
    finding = describe_long(config, examples, limit)
    if finding is None:
        return
    if finding.severity == "error":
        raise DataError(finding.message, where=context.place("data"), hint=finding.hint)
    warn(f"{context.name}: {finding.message} {finding.hint}")


def open_model(config: RLHFConfig, context: Context, tokenizer: Tokenizer) -> Transformer:
    """The model to train, with the ids in its config that pad and that end a turn, and the adapter where there is one.

    What is trained is in float32.
    """
    head: Head = "reward" if config.algorithm == "reward_model" else "causal-lm"
    directory = context.inputs["model"].model_directory
    adapter = config.adapter
    model = load_model(
        directory,
        head=head,
        dtype=base_dtype(adapter, config.precision),
        quantize=None if adapter is None else adapter.quantization,
        quantize_head=False,
        seed=derive_seed(context.seed, "head"),
    )
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, and the model {model.config.vocab_size:,}.",
            where=context.place("model"),
        )
    settings: dict[str, Any] = {}
    if model.config.pad_id is None:
        settings["pad_id"] = tokenizer.pad_id
    end = tokenizer.end_of_turn_id
    if head == "causal-lm" and end is not None:
        settings["eos_ids"] = tuple(dict.fromkeys([end, *model.config.eos_ids]))
    model.config = model.config.model_copy(update=settings)
    if adapter is not None:
        attach_for_training(model, adapter, context.seed, context.name)
    return model


def reference_of(model: Transformer) -> Transformer:
    """The starting model, to be held on to: a copy, or where it has an adapter the model itself, see `as_reference`."""
    return model if find_attached(model) is not None else copy.deepcopy(model).eval().requires_grad_(False)


def open_scorer(config: RLHFConfig, context: Context, tokenizer: Tokenizer, device: torch.device) -> Scorer:
    """What rewards answers.

    Raises:
        ConfigError: the reward model gives no scores, or has another tokenizer than the policy.
    """
    if config.reward_model is None:
        return Scorer(config.rewards)
    finding = reward_model_problem(config, context, tokenizer)
    if finding is not None:
        raise ConfigError(finding.message, where=context.place("reward_model"), hint=finding.hint)
    directory = context.inputs["reward_model"].model_directory
    judge = load_model(directory, dtype=torch.float32, device=device)
    scorer = RewardModelScorer(judge, open_tokenizer(context, "reward_model"))
    return Scorer(config.rewards, scorer, config.reward_model_weight)


def reward_model_problem(config: RLHFConfig, context: Context, tokenizer: Tokenizer) -> Finding | None:
    """Why the reward model cannot judge the policy's answers, if it cannot."""
    head = read_model_facts(context.inputs["reward_model"].model_directory)["head"]
    if head != "reward":
        return Finding(
            f"`{config.reward_model}` has a {head} head and gives no scores.",
            key="reward_model",
            hint="Name a stage with `algorithm: reward_model`.",
        )
    if open_tokenizer(context, "reward_model").digest != tokenizer.digest:
        return Finding(
            f"`{config.reward_model}` has another tokenizer or chat template than `{config.model}`.",
            key="reward_model",
            hint="Train the reward model from a model with the same tokenizer.",
        )
    return None


def mean_length(lengths: list[int]) -> int:
    """Mean of some lengths, at least 1."""
    return max(1, sum(lengths) // max(1, len(lengths)))
