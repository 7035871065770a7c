"""Settings of the fine-tuning stage. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from llmkit.config.base import Facts, Finding, Input
from llmkit.errors import ConfigError
from llmkit.model.adapters.config import AdapterTraining
from llmkit.model.config import Head
from llmkit.tokenizer.templates import BUILT_IN, check_template_name, template_inputs
from llmkit.train.config import ScheduleConfig, TrainConfig
from llmkit.train.optimizers.config import OptimizerConfig

Task = Literal["chat", "classification", "token-classification"]
Overlong = Literal["drop", "truncate", "error"]

DEFAULT_EPOCHS = 3.0
FORMATS: Mapping[Task, str] = {"chat": "conversations", "classification": "labels", "token-classification": "tags"}
"""Format of the examples that each task learns from."""


class FinetuneConfig(TrainConfig):
    """Train a model further on conversations, labelled texts or labelled words."""

    kind: ClassVar[str] = "finetune"

    stage: Literal["finetune"] = "finetune"
    """Kind of the stage."""
    task: Task = "chat"
    """chat: a causal model learns what the assistant says. classification: any model learns the labels of texts.
    token-classification: of words, such as names."""
    model: str = Field(min_length=1)
    """Model to start from: a stage, a path, or hf:owner/name."""
    data: str = Field(min_length=1)
    """Conversations, labelled texts or labelled words: a stage `examples`, or a file or folder (JSONL, JSON, CSV, TSV,
    Parquet) in which a row is OpenAI messages, Alpaca, prompt/completion or ShareGPT; has a text and a label; or, in
    `tokens` and `labels`, a list of words and one of their labels."""
    text_column: str = Field(default="text", min_length=1)
    """Column with the text to classify, in files of one's own."""
    label_column: str = Field(default="label", min_length=1)
    """Column with the label, in files of one's own."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest sequence in tokens; by default the model's context."""
    overlong: Overlong | None = None
    """What happens to longer ones: dropped (the default for chat), cut at the end (the default for the others), or
    refused."""
    chat_template: str | None = None
    """Chat template in place of the tokenizer's own (chat only): "chatml", a file NAME.jinja, or jinja2 text."""
    add_tokens: list[Annotated[str, Field(min_length=1)]] | None = None
    """Special tokens that the tokenizer and the model get, as far as they lack them; by default those that a built-in
    `chat_template` writes. New rows begin as the mean of the others (Hewitt 2021). Under an adapter the token embedding
    (and an output projection of its own) is then trained in full and saved with it."""
    adapter: AdapterTraining | None = None
    """Train a low-rank adapter (LoRA, rsLoRA, DoRA) on the frozen model, in place of the whole model."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training examples; 3 where `steps` is not given either."""
    steps: int = Field(default=0, ge=0)
    """Optimizer steps, in place of `epochs`."""
    packing: bool = False
    """Put the conversations of a micro-batch behind one another, with no padding between them (chat only): those of a
    step go, by best fit, into as few micro-batches as hold the tokens of `micro_batch_size` longest ones. None sees
    another, so that the loss is the same as without; it is faster where their lengths differ much."""
    z_loss: float = Field(default=0.0, ge=0, le=1)
    """Weight of the squared log of the softmax's denominator, which keeps logits from drifting; 1e-4 is usual, 0 is
    none (chat only). The loss that is shown stays the cross-entropy alone, with `z_loss` beside it."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-4, weight_decay=0.01)
    """How gradients become updates."""
    schedule: ScheduleConfig = ScheduleConfig(name="linear", final_fraction=0.0)
    """How the learning rate changes over the run."""

    def inputs(self) -> list[Input]:
        """Model and data, and the template where it is a file."""
        return [
            Input("model", self.model, ("model",)),
            Input("data", self.data, ("examples", "file")),
            *template_inputs("chat_template", self.chat_template),
        ]

    def facts(self, inputs: Mapping[str, Facts]) -> Facts:
        """The model that went in, under the task's head."""
        given = dict(inputs["model"].properties)
        if self.new_tokens():
            # How many of them are new is known once the tokenizer is there.
            given.pop("vocab_size", None)
            given.pop("parameters", None)
            given.pop("active_parameters", None)
        if self.task == "chat":
            given |= {"head": self.head, "labels": []}
            if self.chat_template is not None:
                given["chat_template"] = True
        else:
            given["head"] = self.head
            given.pop("labels", None)
            labels = inputs["data"].get("labels")
            if labels is not None:
                given["labels"] = list(labels)
        return Facts("adapter" if self.saves_adapter_alone else "model", given)

    def check(self, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """Whether model, data and settings fit together."""
        if self.steps and self.epochs is not None:
            yield Finding(
                "`steps` and `epochs` both say how long to train.", key="epochs", hint="Remove one of the two."
            )
        # How many steps an epoch has is known once the data are open; until then none of them is too many.
        yield from super(FinetuneConfig, self if self.steps else self.with_steps(10**9)).check(inputs)
        yield from self._check_model(inputs["model"])
        yield from self._check_data(inputs["data"])
        yield from check_template_name("chat_template", self.chat_template)
        yield from self._check_columns(inputs["data"])
        yield from self._check_adapter(inputs["model"])

    def with_steps(self, steps: int) -> FinetuneConfig:
        """The same settings with the number of optimizer steps that `epochs` comes to."""
        return self.model_copy(update={"steps": steps})

    def resolved(self, steps: int) -> FinetuneConfig:
        """The same settings with the number of steps, and the precision that the adapter's base asks for."""
        low = self.adapter is not None and self.adapter.base_dtype != "fp32"
        precision = "bf16" if low and self.precision == "auto" else self.precision
        return self.model_copy(update={"steps": steps, "precision": precision})

    @property
    def head(self) -> Head:
        """The head that the task needs."""
        return "causal-lm" if self.task == "chat" else self.task

    @property
    def saves_adapter_alone(self) -> bool:
        """Whether no model comes of the stage, but an adapter for the one that went in."""
        return self.adapter is not None and not self.adapter.merge

    def new_tokens(self) -> tuple[str, ...]:
        """Special tokens that tokenizer and model are to have."""
        if self.add_tokens is not None:
            return tuple(self.add_tokens)
        return BUILT_IN.get(self.chat_template or "", ())

    def steps_for(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole training."""
        epochs = DEFAULT_EPOCHS if self.epochs is None else self.epochs
        return self.steps or max(1, math.ceil(epochs * steps_per_epoch - 1e-9))

    def overlong_policy(self) -> Overlong:
        """What happens to sequences that are too long."""
        return self.overlong or ("drop" if self.task == "chat" else "truncate")

    def _check_model(self, model: Facts) -> Iterator[Finding]:
        head, context = model.get("head"), model.get("context")
        if self.task == "chat" and (model.get("causal") is False or head not in (None, "causal-lm")):
            yield Finding(
                f"`{self.model}` has a {head} head, and only a causal language model can learn to answer.",
                key="model",
                hint="Take a causal language model, or set `task: classification`.",
            )
        elif self.task == "chat" and model.get("chat_template") is False and self.chat_template is None:
            yield Finding(
                f"the tokenizer of `{self.model}` has no chat template.", key="model", hint="Set `chat_template`."
            )
        if self.max_length is not None and context is not None and self.max_length > context:
            yield Finding(
                f"max_length {self.max_length:,} is longer than the model's context of {context:,} tokens.",
                key="max_length",
                hint=f"Use at most {context:,}.",
            )

    def _check_data(self, data: Facts) -> Iterator[Finding]:
        found, wanted = data.get("format"), FORMATS[self.task]
        if found is not None and found != wanted:
            fitting = next((task for task, name in FORMATS.items() if name == found), None)
            yield Finding(
                f"`{self.data}` holds {found}, and the task {self.task} learns from {wanted}.",
                key="data",
                hint=f"Set `task: {fitting}`, or use other data." if fitting else None,
            )
        splits, labels = data.get("splits"), data.get("labels")
        if splits is not None and "train" not in splits:
            yield Finding(f"`{self.data}` has no training split.", key="data")
        if self.task != "chat" and labels is not None and len(labels) < 2:
            yield Finding(f"`{self.data}` has {len(labels)} label; at least two are needed.", key="data")

    def _check_columns(self, data: Facts) -> Iterator[Finding]:
        fixed = "a stage's examples have fixed columns"
        reason = fixed if self.task == "classification" else "only classification has columns"
        for key in ("text_column", "label_column"):
            if self._changed(key) and (self.task != "classification" or data.kind == "examples"):
                yield Finding(f"`{key}` has no meaning here: {reason}.", key=key, hint="Remove the key.")
        if self.task != "chat" and self.packing:
            yield Finding("only the task chat is packed.", key="packing", hint="Remove the key.")
        if self.packing and self.parallel.context > 1:
            yield Finding(
                "packed conversations cannot be divided among ranks that share a sequence.",
                key="packing",
                hint="Remove the key, or set `parallel.context: 1`.",
            )
        if self.task != "chat" and self._changed("z_loss"):
            yield Finding("only the task chat has a z-loss.", key="z_loss", hint="Remove the key.")
        if self.task != "chat" and self._changed("chat_template"):
            yield Finding("only the task chat has a chat template.", key="chat_template", hint="Remove the key.")

    def _check_adapter(self, model: Facts) -> Iterator[Finding]:
        if self.adapter is None:
            return
        if self.precision == "fp32" and self.adapter.base_dtype == "bf16":
            yield Finding(
                "a base in bf16 computes in bf16, and `precision` is fp32.",
                key="adapter.base_dtype",
                hint="Remove one of the two keys.",
            )
        linears, layers = model.get("linears"), model.get("layers")
        patterns = (*self.adapter.targets, *self.adapter.ranks, *self.adapter.alphas)
        # Those of the head are not among the facts.
        if linears is None or layers is None or any(pattern.startswith("head.") for pattern in patterns):
            return
        try:
            self.adapter.parameter_count(linears, layers)
        except ConfigError as error:
            yield Finding(error.message, key="adapter", hint=error.hint)

    def _changed(self, key: str) -> Any:
        return getattr(self, key) != type(self).model_fields[key].default
