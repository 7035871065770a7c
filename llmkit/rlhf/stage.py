"""The stage `rlhf`: a reward model, or a language model aligned with preferences or rewards."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from llmkit.config.base import Facts, Finding
from llmkit.errors import ConfigError, LLMKitError
from llmkit.model.adapters.attach import find_attached
from llmkit.model.facts import read_model_facts
from llmkit.model.transformer import Transformer
from llmkit.rlhf.config import BradleyTerryConfig, DPOConfig, GRPOConfig, RLHFConfig
from llmkit.rlhf.encoding import Examples, load_pairs, load_prompts
from llmkit.rlhf.online import Answerer, RolloutSource, validation_rewards
from llmkit.rlhf.policy import ActorCritic, GRPOObjective, PPOObjective, policy_of
from llmkit.rlhf.preferences import DPOObjective, PairSource, RewardModelObjective, evaluate, reference_logprobs
from llmkit.rlhf.prepare import (
    describe_long,
    length_limit,
    mean_length,
    open_model,
    open_scorer,
    open_tokenizer,
    reference_of,
    reward_model_problem,
    train_and_validation_pairs,
    train_and_validation_prompts,
)
from llmkit.rlhf.samples import SampleLog
from llmkit.store.stage import Context, Outcome, Plan
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.train.adapted import ADAPTER, Saver, base_dtype
from llmkit.train.engine import Engine, prepare_engine
from llmkit.train.loop import TrainResult, train
from llmkit.train.memory.machines import Machine
from llmkit.train.parallel.placement import shared_engine, training_world
from llmkit.train.parallel.whole import on_main
from llmkit.train.world import World

CHECKED_ROWS = 200
"""Rows that `check` encodes."""


def run(config: RLHFConfig, context: Context) -> Outcome:
    """Train; the model and its tokenizer go to `model/`, some answers of an online algorithm to `samples.jsonl`.

    Where an adapter is trained, it goes to `adapter/`, and `model/` is the model with the adapter merged.
    """
    config = config.resolved()
    tokenizer = open_tokenizer(context)
    work = _run_online if config.online else _run_pairs
    summary = work(config, context, tokenizer)
    facts = {
        **read_model_facts(context.directory / "model"),
        "chat_template": tokenizer.chat_template is not None,
    }
    return Outcome(["model/*", f"{ADAPTER}/*"], Facts("model", facts), summary)


def _run_pairs(config: RLHFConfig, context: Context, tokenizer: Tokenizer) -> dict[str, Any]:
    """Reward model or DPO."""
    examples, held_out = train_and_validation_pairs(config, context, tokenizer)
    model = open_model(config, context, tokenizer)
    saver = _saver(config, context, tokenizer)
    world = training_world(config, context)
    source = PairSource(examples.rows, config.batch_size, config.micro_batch, context.seed, part=world.part)
    validation = PairSource(held_out, len(held_out), config.micro_batch, context.seed) if held_out else None
    flops = model.config.flops_per_token(mean_length([pair.longest for pair in examples.rows]))
    objective: RewardModelObjective | DPOObjective = RewardModelObjective(config.bradley_terry or BradleyTerryConfig())
    if config.algorithm == "dpo":
        objective = DPOObjective(config.dpo or DPOConfig())
        engine = _engine(config, context, model, world)
        used, rank = source.used(config.steps), "" if world.mesh is None else f"-{world.rank}-of-{world.size}"
        with engine.active(), engine.autocast():
            place = context.directory / f"reference-train{rank}.safetensors"
            source.ref_logprobs = reference_logprobs(model, source, used, "reference", place)
            if validation is not None:
                place, rows = context.directory / f"reference-validation{rank}.safetensors", range(len(held_out))
                validation.ref_logprobs = reference_logprobs(model, validation, rows, "reference, validation", place)
        # One forward pass more over each pair; a training step costs three.
        flops *= 1 + len(used) / (3 * config.steps * config.batch_size)
    batches = list(validation.cut(range(len(held_out)))) if validation is not None else []
    result = train(
        model=model,
        objective=objective,
        source=source,
        config=config,
        context=context,
        save=saver.whole,
        save_checkpoint=saver.checkpoint,
        validation=(lambda trained: evaluate(trained, objective, batches)) if batches else None,
        flops_per_token=flops,
        world=world,
    )
    _save_adapter(saver, model, context, world)
    return _summary(config, examples, result, config.steps * config.batch_size)


def _run_online(config: RLHFConfig, context: Context, tokenizer: Tokenizer) -> dict[str, Any]:
    """PPO or GRPO."""
    world = training_world(config, context)
    if world.mesh is not None:
        raise ConfigError(
            f"{config.algorithm} learns from answers that one process writes, and {world.size} ranks were started.",
            where=context.place("parallel"),
            hint="Run this stage without torchrun; the other stages of the config may have theirs.",
        )
    examples, held_out = train_and_validation_prompts(config, context, tokenizer)
    policy, settings = open_model(config, context, tokenizer), config.policy
    saver = _saver(config, context, tokenizer)
    reference = reference_of(policy) if settings.kl_coefficient else None
    engine = _engine(config, context, policy, world)
    if reference is not None:
        reference.to(engine.device)
    scorer = open_scorer(config, context, tokenizer, torch.device(engine.device))
    answerer = Answerer(policy, tokenizer, scorer, config)
    temperature = config.rollouts.temperature
    model: Transformer | ActorCritic = policy
    objective: GRPOObjective | PPOObjective
    if isinstance(settings, GRPOConfig):
        objective = GRPOObjective(settings, temperature, scorer.names)
    else:
        model = ActorCritic(policy).to(engine.device)
        objective = PPOObjective(settings, temperature, scorer.names)
    samples = SampleLog(context.directory, config.rollouts.samples_every)
    source = RolloutSource(model, reference, examples.rows, answerer, engine, context.seed, samples)
    length = mean_length([len(prompt.ids) for prompt in examples.rows]) + config.rollouts.max_new_tokens
    # Forward passes of a rollout, each a third of a training step: writing it, what the starting model says, and what
    # the policy says where it is needed.
    forwards = 1 + (reference is not None) + (config.algorithm == "ppo" or source.steps_per_rollout > 1)
    result = train(
        model=model,
        objective=objective,
        source=source,
        config=config,
        context=context,
        save=lambda trained, path: saver.whole(policy_of(trained), path),
        save_checkpoint=lambda trained, path: saver.checkpoint(policy_of(trained), path),
        validation=validation_rewards(answerer, held_out) if held_out else None,
        flops_per_token=policy.config.flops_per_token(length) * (1 + forwards / (3 * settings.epochs)),
    )
    _save_adapter(saver, policy, context, world)
    asked = config.steps * config.batch_size / (settings.epochs * config.group_size)
    return _summary(config, examples, result, asked)


def _engine(config: RLHFConfig, context: Context, model: Transformer, world: World) -> Engine:
    """The engine that the training will use, and the model on its device already."""
    engine = shared_engine(world, lambda: prepare_engine(config, model, context.directory, context.place("device")))
    model.to(engine.device)
    return engine


def _saver(config: RLHFConfig, context: Context, tokenizer: Tokenizer) -> Saver:
    return Saver(tokenizer, context.inputs["model"], base_dtype(config.adapter, config.precision))


def _save_adapter(saver: Saver, model: Transformer, context: Context, world: World) -> None:
    if find_attached(model) is not None:
        on_main(partial(saver.adapter, model), model, world)(context.directory / ADAPTER)


def _summary(config: RLHFConfig, examples: Examples[Any], result: TrainResult, used: float) -> dict[str, Any]:
    return {
        "algorithm": config.algorithm,
        "examples": len(examples.rows),
        "dropped": len(examples.dropped),
        "epochs": used / len(examples.rows),
        **result.summary,
    }


def check(config: RLHFConfig, context: Context) -> list[Finding]:
    """Open tokenizers and examples, render some of them, and hold the reward model against the policy."""
    found: list[Finding] = []
    if "model" not in context.inputs:
        return found
    try:
        tokenizer = open_tokenizer(context)
        limit = length_limit(config, context)
    except LLMKitError as error:
        return [_finding("model", error)]
    if tokenizer.chat_template is None:
        return [Finding(f"the tokenizer of `{config.model}` has no chat template.", key="model")]
    if "data" in context.inputs:
        try:
            found += _check_examples(config, context, tokenizer, limit)
        except LLMKitError as error:
            found.append(_finding("data", error))
    if "reward_model" in context.inputs:
        try:
            problem = reward_model_problem(config, context, tokenizer)
        except LLMKitError as error:
            problem = _finding("reward_model", error)
        found += [] if problem is None else [problem]
    return found


def _check_examples(config: RLHFConfig, context: Context, tokenizer: Tokenizer, limit: int) -> list[Finding]:
    load = load_prompts if config.online else load_pairs
    examples: Examples[Any] = load(context.inputs["data"], "train", tokenizer, limit, CHECKED_ROWS)
    finding = describe_long(config, examples, limit)
    if finding is None and not examples.rows:
        finding = Finding("there are no training examples.", key="data")
    elif finding is not None and not examples.rows:
        finding = Finding(f"all of the first {CHECKED_ROWS} examples are longer than {limit:,} tokens.", key="data")
    return [] if finding is None else [finding]


def _finding(key: str, error: LLMKitError) -> Finding:
    return Finding(f"{error.where}: {error.message}" if error.where else error.message, key=key, hint=error.hint)


def plan(config: RLHFConfig, inputs: Mapping[str, Facts], machine: Machine) -> Plan:
    """Parameters, memory of weights and optimizer, and tokens as if every example were as long as it may be.

    Of the machine nothing is needed: activations are not reckoned.
    """
    parameters, context = inputs["model"].get("parameters"), inputs["model"].get("context")
    if parameters is None:
        return Plan(notes=["the size of the model is not known before it is there."])
    trained, memory = parameters, {"weights": 4 * parameters}
    linears, layers = inputs["model"].get("linears"), inputs["model"].get("layers")
    if config.adapter is not None and linears is not None and layers is not None:
        trained = config.adapter.parameter_count(linears, layers)
        frozen = config.adapter.base_bytes(parameters, linears, layers)
        memory = {"frozen weights": frozen, "adapter": 4 * trained}
    elif config.online and config.policy.kl_coefficient:
        memory["reference"] = 4 * parameters
    memory |= {"gradients": 4 * trained, "optimizer": 8 * trained}
    judge = inputs["reward_model"].get("parameters") if "reward_model" in inputs else None
    if judge is not None:
        memory["reward model"] = 4 * judge
    if context is None:
        return Plan(trained, memory_bytes=memory)
    longest = context if config.online else 2 * min(context, config.max_length or context)
    if config.online and config.rollouts.max_prompt_length is not None:
        longest = min(context, config.rollouts.max_prompt_length + config.rollouts.max_new_tokens)
    tokens = config.steps * config.batch_size * longest
    notes = ["activations come on top.", "tokens are reckoned as if every example were as long as it may be."]
    active = inputs["model"].get("active_parameters") or parameters
    flops = (4.0 * active + 2.0 * min(trained, active)) * tokens
    return Plan(trained, tokens, flops, memory, notes)
