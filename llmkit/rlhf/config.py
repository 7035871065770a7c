"""Settings of alignment: reward models, DPO, PPO and GRPO. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from llmkit.config.base import Config, Facts, Finding, Input, differs
from llmkit.model.adapters.config import AdapterTraining
from llmkit.rlhf.rewards import Reward
from llmkit.rlhf.variants import AdvantageScale, Aggregation, Algorithm, PreferenceLoss
from llmkit.train.config import ScheduleConfig, TrainConfig
from llmkit.train.memory.config import PartialCheckpointing
from llmkit.train.optimizers.config import OptimizerConfig

_ONLY_FOR: dict[str, tuple[Algorithm, ...]] = {
    "bradley_terry": ("reward_model",),
    "dpo": ("dpo",),
    "ppo": ("ppo",),
    "grpo": ("grpo",),
    "rollout": ("ppo", "grpo"),
    "rewards": ("ppo", "grpo"),
    "reward_model": ("ppo", "grpo"),
    "reward_model_weight": ("ppo", "grpo"),
    "max_length": ("reward_model", "dpo"),
}


class BradleyTerryConfig(Config):
    """How a reward model learns from preferences."""

    margin: float = Field(default=0.0, ge=0, le=100)
    """How far the score of the chosen answer is to lie above that of the rejected one."""
    centering: float = Field(default=0.0, ge=0, le=10)
    """Weight of the squared sum of a pair's scores, which keeps scores around zero; 0.01 is usual."""


class DPOConfig(Config):
    """Direct preference optimization."""

    beta: float = Field(default=0.1, gt=0, le=100)
    """Strength of the pull towards the starting model."""
    loss: PreferenceLoss = "sigmoid"
    """sigmoid: DPO as published. ipo: a squared distance, which does not run away where preferences are certain. hinge:
    no gradient beyond a margin."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the preferences that are taken to be the wrong way round (sigmoid)."""


class PPOConfig(Config):
    """Proximal policy optimization with a value head."""

    epochs: int = Field(default=4, ge=1, le=100)
    """Passes over each rollout."""
    kl_coefficient: float = Field(default=0.05, ge=0, le=100)
    """Penalty on each token for the divergence from the starting model; 0 does without the starting model."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """How far below 1 the probability ratio to the policy that wrote the answer may fall."""
    clip_high: float = Field(default=0.2, gt=0, le=10)
    """How far above 1 it may rise."""
    value_clip: float = Field(default=0.2, gt=0, le=100)
    """How far a value may move from that at the time of the rollout."""
    value_coefficient: float = Field(default=0.1, ge=0, le=100)
    """Weight of the value head's loss."""
    entropy_coefficient: float = Field(default=0.0, ge=0, le=10)
    """Weight of the bonus for entropy."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """Gamma of generalized advantage estimation."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalized advantage estimation."""
    aggregation: Aggregation = "token-mean"
    """token-mean: every token weighs alike. sequence-mean: every answer does."""


class GRPOConfig(Config):
    """Group-relative policy optimization."""

    group_size: int = Field(default=8, ge=2, le=1024)
    """Answers to each prompt, which are measured against each other."""
    epochs: int = Field(default=1, ge=1, le=100)
    """Passes over each rollout."""
    kl_coefficient: float = Field(default=0.04, ge=0, le=100)
    """Weight of the divergence from the starting model in the loss; 0 does without the starting model."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """How far below 1 the probability ratio to the policy that wrote the answer may fall."""
    clip_high: float = Field(default=0.2, gt=0, le=10)
    """How far above 1 it may rise; a larger number (0.28) keeps rare answers alive."""
    scale: AdvantageScale = "std"
    """std: advantages are divided by the deviation within the group. none: they are not (Dr. GRPO)."""
    aggregation: Aggregation = "token-mean"
    """token-mean: every token weighs alike. sequence-mean: every answer does."""


class RolloutConfig(Config):
    """How the model's answers to the prompts are made. A rollout is `batch_size` x `minibatches` answers."""

    max_new_tokens: int = Field(default=64, ge=1, le=1_000_000)
    """Longest answer, in tokens."""
    max_prompt_length: int | None = Field(default=None, ge=1)
    """Longest prompt, in tokens; by default what the context leaves beside the answer."""
    temperature: float = Field(default=1.0, gt=0, le=10)
    """Of the draws, and of the policy that is trained."""
    minibatches: int = Field(default=1, ge=1, le=1024)
    """Optimizer steps in one pass over a rollout."""
    unfinished: Literal["score", "penalty", "mask"] = "score"
    """What becomes of answers cut off at `max_new_tokens`. score: they are rewarded like any other. penalty: so, less
    `unfinished_penalty`. mask: nothing is learnt from them."""
    unfinished_penalty: float = Field(default=1.0, gt=0, le=1000)
    """What is subtracted from the reward of an unfinished answer (`unfinished: penalty`)."""
    concurrency: int = Field(default=128, ge=1, le=65536)
    """Answers that are written at once; bounds the memory of the key/value cache."""
    samples_every: int = Field(default=10, ge=1)
    """Rollouts from one to the next of which a few answers go to `samples.jsonl`."""


class RLHFConfig(TrainConfig):
    """Train a reward model on preferences, or align a language model with preferences or rewards."""

    kind: ClassVar[str] = "rlhf"

    stage: Literal["rlhf"] = "rlhf"
    algorithm: Algorithm
    """reward_model: a scorer of answers, from preferences. dpo: the language model itself, from preferences. ppo, grpo:
    the language model, from rewards for the answers that it writes; ppo with a value head, grpo with groups of answers
    to one prompt."""
    model: str = Field(min_length=1)
    """The model to start from: a stage or a path. DPO, PPO and GRPO also hold on to it (their KL terms)."""
    data: str = Field(min_length=1)
    """Preferences (reward_model, dpo) or conversations, whose prompts are answered (ppo, grpo): a stage or a path."""
    too_long: Literal["error", "drop"] = "error"
    """What to do about examples longer than the limits below: stop and name them, or leave them out and count them."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest conversation of a preference, in tokens (reward_model, dpo); by default the model's context."""
    rewards: list[Reward] = Field(default=[])
    """Reward functions for answers (ppo, grpo), by name or as a mapping of `name`, `weight` and their settings."""
    reward_model: str | None = Field(default=None, min_length=1)
    """A reward model for answers (ppo, grpo): a stage or a path."""
    reward_model_weight: float = Field(default=1.0, ge=-1000, le=1000)
    """Factor of the reward model's score in the reward."""
    bradley_terry: BradleyTerryConfig | None = None
    """Settings of the algorithm reward_model."""
    dpo: DPOConfig | None = None
    """Settings of the algorithm dpo."""
    ppo: PPOConfig | None = None
    """Settings of the algorithm ppo."""
    grpo: GRPOConfig | None = None
    """Settings of the algorithm grpo."""
    rollout: RolloutConfig | None = None
    """How answers are made (ppo, grpo)."""
    adapter: AdapterTraining | None = None
    """Train a low-rank adapter (LoRA, rsLoRA, DoRA) on the frozen model, in place of the whole model. The model that
    the divergence is measured from is then the same one with its adapter off: there is no second copy in memory."""

    steps: int = Field(default=200, ge=1)
    """Optimizer steps."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5, weight_decay=0.0)
    """How gradients become updates."""
    schedule: ScheduleConfig = ScheduleConfig(name="constant")
    """How the learning rate changes over the run."""
    log_every: int = Field(default=5, ge=1)
    """Steps between lines of `metrics.jsonl`."""

    @property
    def online(self) -> bool:
        """Whether the model's own answers are learnt from."""
        return self.algorithm in ("ppo", "grpo")

    @property
    def rollouts(self) -> RolloutConfig:
        """The settings of rollouts, defaults included."""
        return self.rollout or RolloutConfig()

    @property
    def policy(self) -> PPOConfig | GRPOConfig:
        """The settings of the online algorithm, defaults included."""
        return (self.ppo or PPOConfig()) if self.algorithm == "ppo" else (self.grpo or GRPOConfig())

    @property
    def group_size(self) -> int:
        """Answers to each prompt of a rollout."""
        settings = self.policy
        return settings.group_size if isinstance(settings, GRPOConfig) else 1

    @property
    def completions(self) -> int:
        """Answers in a rollout."""
        return self.batch_size * self.rollouts.minibatches

    def resolved(self) -> RLHFConfig:
        """The same settings with the precision that the adapter's base asks for."""
        low = self.adapter is not None and self.adapter.base_dtype != "fp32"
        return self.model_copy(update={"precision": "bf16"}) if low and self.precision == "auto" else self

    def inputs(self) -> list[Input]:
        """The model, the examples, and the reward model."""
        found = [Input("model", self.model, ("model",)), Input("data", self.data, ("examples", "file"))]
        if self.reward_model is not None:
            found.append(Input("reward_model", self.reward_model, ("model",)))
        return found

    def facts(self, inputs: Mapping[str, Facts]) -> Facts:
        """The model that is started from, for a reward model under another head."""
        properties = {key: value for key, value in inputs["model"].properties.items() if key != "labels"}
        head = "reward" if self.algorithm == "reward_model" else "causal-lm"
        return Facts("model", {**properties, "head": head, "chat_template": True})

    def check(self, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """Keys of another algorithm, wrong heads and formats, lengths beyond a context."""
        yield from super().check(inputs)
        yield from self._check_memory()
        yield from self._check_keys()
        yield from self._check_model(inputs["model"])
        wanted = "conversations" if self.online else "preferences"
        found = inputs["data"].get("format")
        if found is not None and found != wanted:
            yield Finding(f"`{self.data}` holds {found}, and {self.algorithm} learns from {wanted}.", key="data")
        context = inputs["model"].get("context")
        if context is not None:
            yield from self._check_lengths(context)
        if self.reward_model is not None and self.online:
            yield from self._check_reward_model(inputs["reward_model"], inputs["model"])

    def _check_memory(self) -> Iterator[Finding]:
        """What other stages reckon from the lengths of their rows, which answers do not have beforehand."""
        if self.micro_batch_size == "auto":
            yield Finding("rlhf finds no micro-batch by itself.", key="micro_batch_size", hint="Set a number.")
        setting = self.activation_checkpointing
        if isinstance(setting, PartialCheckpointing) and setting.budget is not None:
            hint = "Set `full`, or a number of `blocks`."
            yield Finding("rlhf has no budget of activations.", key="activation_checkpointing.budget", hint=hint)

    def _check_keys(self) -> Iterator[Finding]:
        for key, algorithms in _ONLY_FOR.items():
            if differs(self, key) and self.algorithm not in algorithms:
                yield Finding(
                    f"`{key}` belongs to the algorithm {' or '.join(algorithms)}; {self.algorithm} has no use for it.",
                    key=key,
                    hint="Remove it, or choose another `algorithm`.",
                )
        if self.adapter is not None and not self.adapter.merge:
            yield Finding(
                "alignment saves the model merged, and its adapter beside it.",
                key="adapter.merge",
                hint="Remove the key.",
            )
        if self.adapter is not None and self.precision == "fp32" and self.adapter.base_dtype == "bf16":
            yield Finding(
                "a base in bf16 computes in bf16, and `precision` is fp32.",
                key="adapter.base_dtype",
                hint="Remove one of the two keys.",
            )
        if self.online:
            yield from self._check_online_keys()
        elif self.dpo is not None and self.dpo.loss != "sigmoid" and self.dpo.label_smoothing:
            yield Finding(
                f"label_smoothing is a setting of the sigmoid loss; {self.dpo.loss} ignores it.",
                key="dpo.label_smoothing",
                hint="Remove it, or set `loss: sigmoid`.",
            )

    def _check_online_keys(self) -> Iterator[Finding]:
        if not self.rewards and self.reward_model is None:
            yield Finding(
                f"{self.algorithm} needs something that rewards answers.",
                key="rewards",
                hint="Name functions in `rewards` (such as exact_match), a `reward_model`, or both.",
            )
        if self.reward_model is None and differs(self, "reward_model_weight"):
            yield Finding("there is no `reward_model` that this weight could be for.", key="reward_model_weight")
        if self.completions % self.group_size:
            yield Finding(
                f"groups of {self.group_size} do not divide a rollout of {self.completions} answers "
                "(batch_size x rollout.minibatches).",
                key="grpo.group_size" if self.grpo is not None else "batch_size",
                hint="Change `batch_size` or `grpo.group_size`.",
            )
        if differs(self.rollouts, "unfinished_penalty") and self.rollouts.unfinished != "penalty":
            yield Finding(
                f"unfinished_penalty belongs to `unfinished: penalty`, not to `{self.rollouts.unfinished}`.",
                key="rollout.unfinished_penalty",
                hint="Remove it, or set `unfinished: penalty`.",
            )

    def _check_model(self, model: Facts) -> Iterator[Finding]:
        head = model.get("head")
        if self.algorithm != "reward_model" and head is not None and head != "causal-lm":
            yield Finding(
                f"{self.algorithm} trains a causal language model, and `{self.model}` has a {head} head.",
                key="model",
                hint="Name a pretrained or fine-tuned language model.",
            )
        if model.get("chat_template") is False:
            yield Finding(
                f"the tokenizer of `{self.model}` has no chat template, so there is no way to write a prompt.",
                key="model",
                hint="Set `chat_template` in the tokenizer stage, or use a model that has one.",
            )

    def _check_lengths(self, context: int) -> Iterator[Finding]:
        if not self.online:
            if self.max_length is not None and self.max_length > context:
                yield Finding(
                    f"max_length {self.max_length:,} is beyond the model's context of {context:,}.", key="max_length"
                )
            return
        rollout = self.rollouts
        if rollout.max_new_tokens >= context:
            yield Finding(
                f"{rollout.max_new_tokens:,} new tokens leave no room for a prompt in the model's context of "
                f"{context:,}.",
                key="rollout.max_new_tokens" if self.rollout is not None else "rollout",
                hint="Lower `rollout.max_new_tokens`.",
            )
        elif rollout.max_prompt_length is not None and rollout.max_prompt_length + rollout.max_new_tokens > context:
            yield Finding(
                f"prompts of {rollout.max_prompt_length:,} and answers of {rollout.max_new_tokens:,} tokens do not fit "
                f"the model's context of {context:,}.",
                key="rollout.max_prompt_length",
                hint=f"Take at most {context - rollout.max_new_tokens:,}.",
            )

    def _check_reward_model(self, reward_model: Facts, model: Facts) -> Iterator[Finding]:
        head = reward_model.get("head")
        if head is not None and head != "reward":
            yield Finding(
                f"`{self.reward_model}` has a {head} head and gives no scores.",
                key="reward_model",
                hint="Name a stage with `algorithm: reward_model`.",
            )
        sizes = (model.get("vocab_size"), reward_model.get("vocab_size"))
        if None not in sizes and sizes[0] != sizes[1]:
            yield Finding(
                f"`{self.reward_model}` has a vocabulary of {sizes[1]:,} tokens, `{self.model}` one of {sizes[0]:,}: "
                "they need the same tokenizer.",
                key="reward_model",
            )
        context, longest = reward_model.get("context"), self.rollouts.max_new_tokens
        prompt = self.rollouts.max_prompt_length or 1
        if context is not None and prompt + longest > context:
            yield Finding(
                f"prompts and answers of {prompt + longest:,} tokens do not fit the context of `{self.reward_model}`, "
                f"{context:,}.",
                key="reward_model",
                hint="Lower `rollout.max_new_tokens` or `rollout.max_prompt_length`.",
            )
