"""Settings of the tasks of an evaluation. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from llmkit.config.base import Config, Facts, Finding, nearest
from llmkit.store.splits import Split

TextMetric = Literal["exact_match", "contains", "rouge", "bleu", "chrf", "length", "reward"]
ClassMetric = Literal["accuracy", "macro_f1", "micro_f1", "mcc"]
NonEmpty = Annotated[str, Field(min_length=1)]


class BaseTask(Config):
    """What every task can say."""

    heads: ClassVar[tuple[str, ...]]
    """Heads that a model needs one of."""
    data_kinds: ClassVar[tuple[str, ...]] = ("examples", "file")
    """Kinds of data that fit."""
    data_format: ClassVar[str | None] = None
    """What the examples have to be."""

    kind: str
    """Kind of the task."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
    """Name of the task in tables; its kind by default."""
    data: str = Field(min_length=1)
    """Stage, file or folder that gives the data."""
    split: Split | Literal["all"] = "test"
    """Part of the data to measure on; `all` for every row of files that were made for testing."""
    limit: int | None = Field(default=None, ge=1)
    """Measure on no more than this many examples: those whose ids have the lowest digests, whatever their order."""
    models: list[NonEmpty] | None = Field(default=None, min_length=1)
    """Models to measure, as written in `models` of the stage; by default all that can do the task."""

    @property
    def title(self) -> str:
        """The name, or the kind."""
        return self.name or self.kind

    def needs(self, head: str) -> str | None:
        """Why a model with this head cannot do the task; None where it can."""
        if head in self.heads:
            return None
        return f"has a {head} head, and the task `{self.title}` needs {' or '.join(self.heads)}"

    def check_data(self, data: Facts) -> Iterator[Finding]:
        """What is wrong with the data, as far as its facts tell; keys are below the task."""
        found = data.get("format")
        if self.data_format is not None and found is not None and found != self.data_format:
            yield Finding(f"`{self.data}` holds {found}, and {self.data_format} are wanted here.", key="data")
        splits = data.get("splits")
        if splits is not None and self.split not in ("all", *splits):
            yield Finding(f"`{self.data}` has no {self.split} split.", key="split", hint=f"It has {', '.join(splits)}.")

    def check_model(self, name: str, model: Facts) -> Iterator[Finding]:
        """What is wrong with measuring a model whose head fits; keys are below the task."""
        yield from ()


class PerplexityTask(BaseTask):
    """Loss, perplexity and bits per byte of held-out text, the same bytes for every model and for gzip and xz."""

    heads = ("causal-lm",)
    data_kinds = ("documents", "tokens", "file")
    kind: Literal["perplexity"] = "perplexity"
    """Loss, perplexity and bits per byte of held-out text, the same bytes for every model and for gzip and xz."""
    context: int | None = Field(default=None, ge=2)
    """Tokens that a model sees at once; by default the model's context."""
    stride: int | None = Field(default=None, ge=1)
    """Tokens between the starts of two windows. By default windows do not overlap, as in training; with a smaller
    stride each token is scored with at least `context` - `stride` tokens before it, at a higher cost."""

    @model_validator(mode="after")
    def _stride_within_context(self) -> PerplexityTask:
        if self.stride is not None and self.context is not None and self.stride > self.context:
            raise PydanticCustomError(
                "stride", "a stride longer than the context of {context} leaves tokens out", {"context": self.context}
            )
        return self

    def check_model(self, name: str, model: Facts) -> Iterator[Finding]:
        """A window must fit the model."""
        yield from _window_fits(self.context, name, model)
        limit = self.context or model.get("context")
        if self.stride is not None and limit is not None and self.stride > limit:
            yield Finding(f"the stride is longer than the context of `{name}`, {limit} tokens.", key="stride")


class MaskedTask(BaseTask):
    """Loss and accuracy of a masked language model on held-out text, with masks fixed by the seed."""

    heads = ("masked-lm",)
    data_kinds = ("documents", "tokens", "file")
    kind: Literal["masked"] = "masked"
    """Loss and accuracy of a masked language model on held-out text, with masks fixed by the seed."""
    context: int | None = Field(default=None, ge=4)
    """Tokens that a model sees at once; by default the model's context."""
    fraction: float = Field(default=0.15, gt=0, le=0.9)
    """Share of the tokens of each window that is masked, at least one; all of them become [MASK]."""

    def check_model(self, name: str, model: Facts) -> Iterator[Finding]:
        """A window must fit the model."""
        yield from _window_fits(self.context, name, model)


class GenerateTask(BaseTask):
    """Answers written by the models, all on the same prompts, compared with references or scored by a reward model."""

    heads = ("causal-lm",)
    data_format = "conversations"
    kind: Literal["generate"] = "generate"
    """Answers written by the models, all on the same prompts, compared with references or scored by a reward model."""
    metrics: list[TextMetric] = Field(default=["exact_match", "rouge", "length"], min_length=1)
    """What is computed of the answers. `reward` needs `reward_model` and also gives each pair of models a win rate."""
    reward_model: str | None = Field(default=None, min_length=1)
    """Stage or folder of the reward model that scores the answers."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Most tokens of an answer."""
    temperature: float = Field(default=0.0, ge=0)
    """Divides the logits; 0 takes the most likely token each time."""
    top_k: int | None = Field(default=None, ge=1)
    """Draw from the k most likely tokens only."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the fewest most likely tokens that together reach this probability."""
    stop: list[NonEmpty] = Field(default=[])
    """Texts that end an answer, which is cut before them; the end of the turn always ends it."""
    too_long: Literal["error", "skip"] = "error"
    """What to do where a prompt leaves a model no room to answer: refuse, or leave it out for every model."""

    @field_validator("metrics")
    @classmethod
    def _once(cls, metrics: list[str]) -> list[str]:
        return _without_repeats(metrics)

    @model_validator(mode="after")
    def _reward_has_its_model(self) -> GenerateTask:
        if "reward" in self.metrics and self.reward_model is None:
            raise PydanticCustomError("reward_model", "the metric `reward` needs a `reward_model`", {})
        if self.reward_model is not None and "reward" not in self.metrics:
            raise PydanticCustomError("reward_model", "a `reward_model` is used by the metric `reward` alone", {})
        return self

    def check_model(self, name: str, model: Facts) -> Iterator[Finding]:
        """The model must have a chat template, and room to answer in."""
        yield from _has_chat_template(name, model, "models")
        context = model.get("context")
        if context is not None and self.max_new_tokens >= context:
            yield Finding(
                f"answers of {self.max_new_tokens} tokens leave no room for a prompt in the context of `{name}`,"
                f" {context} tokens.",
                key="max_new_tokens",
            )


class ClassificationTask(BaseTask):
    """Classes predicted by classification heads, beside the majority class of the training split."""

    heads = ("classification",)
    data_format = "labels"
    kind: Literal["classification"] = "classification"
    """Classes predicted by classification heads, beside the majority class of the training split."""
    metrics: list[ClassMetric] = Field(default=["accuracy", "macro_f1", "mcc"], min_length=1)
    """What is computed of the predictions."""
    text: str = Field(default="text", min_length=1)
    """Column with the text, in files of one's own."""
    label: str = Field(default="label", min_length=1)
    """Column with the class, in files of one's own."""

    @field_validator("metrics")
    @classmethod
    def _once(cls, metrics: list[str]) -> list[str]:
        return _without_repeats(metrics)

    def unknown_labels(self, data: Facts, model: Facts) -> list[str]:
        """Classes of the data that a model does not know, as far as both are known."""
        known = model.get("labels")
        return sorted(set(data.get("labels") or ()) - set(known)) if known else []


class PreferencesTask(BaseTask):
    """How often a reward model scores the better of two answers higher."""

    heads = ("reward",)
    data_format = "preferences"
    kind: Literal["preferences"] = "preferences"
    """How often a reward model scores the better of two answers higher."""

    def check_model(self, name: str, model: Facts) -> Iterator[Finding]:
        """The conversations are rendered with the model's chat template."""
        yield from _has_chat_template(name, model, "models")


class ChoiceTask(BaseTask):
    """Multiple choice: the option to which a language model gives the highest likelihood.

    Rows have `choices`, `answer` (number of the right one, from 0), and `prompt` (text that the options continue, after
    a space) or `messages` (a conversation that they answer).
    """

    heads = ("causal-lm",)
    data_kinds = ("file",)
    kind: Literal["choice"] = "choice"
    """Multiple choice: the option to which a language model gives the highest likelihood."""
    split: Literal["all"] = "all"
    """The files are measured on as a whole."""


TaskConfig = Annotated[
    PerplexityTask | MaskedTask | GenerateTask | ClassificationTask | PreferencesTask | ChoiceTask,
    Field(discriminator="kind"),
]


def wanted_models(task: BaseTask, models: Mapping[str, Facts]) -> tuple[list[str], dict[str, str]]:
    """Which models a task measures, and why it leaves out others.

    Args:
        task: the task.
        models: facts of the models by the value written in `models`.

    Returns:
        values of the models that it names, or of all whose head fits or is not known; and by value the reason why
        one is left out that might have been meant.
    """
    if task.models is not None:
        return [value for value in models if value in task.models], {}
    chosen: list[str] = []
    left: dict[str, str] = {}
    for value, facts in models.items():
        head = facts.get("head")
        reason = task.needs(head) if head is not None else None
        if reason is None:
            chosen.append(value)
        else:
            left[value] = reason
    return chosen, left


def check_task(task: BaseTask, models: Mapping[str, Facts], data: Facts, judge: Facts | None) -> Iterator[Finding]:
    """What is wrong with a task, before anything has run; keys are below the task.

    Args:
        task: the task.
        models: facts of the models by the value written in `models`.
        data: facts of its data.
        judge: facts of its reward model, where it has one.
    """
    yield from task.check_data(data)
    for index, value in enumerate(task.models or ()):
        key = f"models.{index}"
        if value not in models:
            guess = nearest(value, models)
            hint = f"Did you mean `{guess}`?" if guess else f"Models of the stage: {', '.join(models)}."
            yield Finding(f"`{value}` is not among the models of the stage.", key=key, hint=hint)
        elif (head := models[value].get("head")) is not None and (reason := task.needs(head)):
            yield Finding(f"`{value}` {reason}.", key=key)
    chosen, _ = wanted_models(task, models)
    if task.models is None and not chosen:
        yield Finding(f"none of the models can do this: it needs a {' or '.join(task.heads)} head.", key="kind")
    for value in chosen:
        yield from task.check_model(value, models[value])
        if isinstance(task, ClassificationTask) and (unknown := task.unknown_labels(data, models[value])):
            yield Finding(
                f"`{task.data}` has classes that `{value}` does not know: {', '.join(unknown[:5])}.", key="data"
            )
    if judge is not None and isinstance(task, GenerateTask):
        head = judge.get("head")
        if head is not None and head != "reward":
            yield Finding(f"`{task.reward_model}` has a {head} head, and a reward head is needed.", key="reward_model")
        else:
            yield from _has_chat_template(str(task.reward_model), judge, "reward_model")


def _window_fits(context: int | None, name: str, model: Facts) -> Iterator[Finding]:
    limit = model.get("context")
    if context is not None and limit is not None and context > limit:
        yield Finding(f"a context of {context} tokens is longer than that of `{name}`, {limit}.", key="context")


def _has_chat_template(name: str, model: Facts, key: str) -> Iterator[Finding]:
    if model.get("chat_template") is False:
        yield Finding(
            f"the tokenizer of `{name}` has no chat template, which turns conversations into prompts.",
            key=key,
            hint="Set `chat_template` in the tokenizer stage, or leave this model out by `models` of the task.",
        )


def _without_repeats(names: list[str]) -> list[str]:
    repeated = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if repeated is not None:
        raise PydanticCustomError("repeated", "`{name}` stands twice", {"name": repeated})
    return names
