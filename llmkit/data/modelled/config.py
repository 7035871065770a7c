"""Settings of the filters that measure by a model. No heavy imports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llmkit.config.base import Config, Facts, Finding, Input, differs, nearest
from llmkit.data.cleaning.inputs import FilterWithInputs

Probability = Annotated[float, Field(ge=0, le=1)]
NonEmpty = Annotated[str, Field(min_length=1)]


class ModelFilterConfig(FilterWithInputs):
    """How a filter runs its model. Each process of the stage holds a model of its own and computes with one thread."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of weights and matrix products."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model computes. Results of a GPU differ from those of a CPU in their last digits."""
    batch_size: int = Field(default=1, ge=1)
    """Sequences that go through the model at once. One by one, none changes the last digits of another's measure; more
    is faster on a GPU."""

    def _check_model(
        self, key: str, name: str, model: Facts, heads: Sequence[str], length: tuple[str, int | None]
    ) -> Iterator[Finding]:
        """A model of another head than wanted, or of a context shorter than `length`, a key and its value."""
        head, context = model.get("head"), model.get("context")
        if head is not None and head not in heads:
            yield Finding(
                f"`{name}` has a {head} head, and one of these is wanted here: {', '.join(heads)}.", key=f"{key}.model"
            )
        elif context is not None and length[1] is not None and length[1] > context:
            yield Finding(
                f"{length[0]} {length[1]:,} is longer than the context of `{name}`, {context:,} tokens.",
                key=f"{key}.{length[0]}",
                hint=f"Use at most {context:,}.",
            )

    def _without_meaning(self, key: str, names: Sequence[str], why: str) -> Iterator[Finding]:
        for name in names:
            if differs(self, name):
                yield Finding(f"`{name}` has no meaning here: {why}.", key=f"{key}.{name}", hint="Remove the key.")


def _unknown_label(key: str, label: str, model: Facts, name: str) -> Iterator[Finding]:
    labels = model.get("labels")
    if labels and label not in labels:
        guess = nearest(label, labels)
        hint = f"Did you mean `{guess}`?" if guess else f"Its classes: {', '.join(labels)}."
        yield Finding(f"`{name}` has no class `{label}`.", key=key, hint=hint)


def _refuse_empty_range(least: float | None, most: float | None, name: str) -> None:
    if least is not None and most is not None and least > most:
        raise PydanticCustomError("range", "min_{name} is above max_{name}: every document would go", {"name": name})


class NGramConfig(Config):
    """A model of word n-grams with modified Kneser-Ney smoothing (Chen & Goodman 1998), made by the stage.

    Words are runs of letters and digits without regard to case, and single characters of scripts without spaces;
    punctuation counts for nothing. A word that was not in the text is one of a kind, as rare as any can be.
    """

    train_on: list[NonEmpty] = Field(min_length=1)
    """Text as it should be: stages of kind `data` (their training part), and files or folders: plain text, one document
    each, or JSONL, CSV, TSV or Parquet with a column `text`."""
    order: int = Field(default=5, ge=1, le=8)
    """Words in the longest n-gram."""
    min_count: int = Field(default=2, ge=1)
    """N-grams of three words and more that come less often are left out; 1 keeps all, which takes several times the
    memory."""
    max_bytes: int = Field(default=50_000_000, ge=1)
    """Bytes of text to learn from; of more, a part of about this size, chosen by digests of the documents."""


class PerplexityConfig(ModelFilterConfig):
    """Drops documents that a language model finds too unlikely, or too likely.

    Two measures: perplexity, of a word (`ngram`) or of a token (`model`), and bits per byte, which can be compared
    between tokenizers. Without a threshold nothing is dropped, and the columns tell where to set one.
    """

    ngram: NGramConfig | None = None
    """A small model of word n-grams; some thousand times as fast as `model` on a CPU."""
    model: NonEmpty | None = None
    """A causal language model: a stage, a folder, or hf:owner/name."""
    context: int | None = Field(default=None, ge=2)
    """Tokens that `model` sees at once; by default its context. Longer documents are scored in windows."""
    min_perplexity: float | None = Field(default=None, ge=1)
    """Smallest perplexity: below it are texts that say the same again and again, or what the model knows by heart."""
    max_perplexity: float | None = Field(default=None, ge=1)
    """Largest perplexity."""
    min_bits_per_byte: float | None = Field(default=None, ge=0)
    """Fewest bits a byte."""
    max_bits_per_byte: float | None = Field(default=None, ge=0)
    """Most bits a byte."""
    min_length: int = Field(default=10, ge=1)
    """Documents of fewer words (`ngram`) or tokens (`model`) are not judged: over so few, chance decides."""

    @model_validator(mode="after")
    def _one_model(self) -> PerplexityConfig:
        if (self.ngram is None) == (self.model is None):
            raise PydanticCustomError("model", "one of `ngram` and `model` is wanted", {})
        _refuse_empty_range(self.min_perplexity, self.max_perplexity, "perplexity")
        _refuse_empty_range(self.min_bits_per_byte, self.max_bits_per_byte, "bits_per_byte")
        return self

    def inputs(self, key: str) -> list[Input]:
        """The model, or the texts that it is made of."""
        if self.ngram is not None:
            place, kinds = f"{key}.ngram.train_on", ("documents", "file")
            return [Input(f"{place}.{index}", value, kinds) for index, value in enumerate(self.ngram.train_on)]
        assert self.model is not None
        return [Input(f"{key}.model", self.model, ("model",))]

    def check(self, key: str, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """A model that is no causal language model, or one that is not there and yet has settings."""
        if self.model is None:
            names = ("context", "precision", "device", "batch_size")
            yield from self._without_meaning(key, names, "it belongs to `model`")
        elif (model := inputs.get(f"{key}.model")) is not None:
            yield from self._check_model(key, self.model, model, ("causal-lm",), ("context", self.context))


class ClassifierConfig(ModelFilterConfig):
    """Drops documents by what a classifier says of them, or a model that gives each one score.

    Without a threshold nothing is dropped, and the columns tell where to set one.
    """

    model: NonEmpty
    """A model with a classification head, or with one output (a reward or regression head, as FineWeb-Edu's classifier
    has it): a stage, a folder, or hf:owner/name."""
    label: NonEmpty | None = None
    """Class whose probability is measured; by default the likeliest one's."""
    max_length: int | None = Field(default=None, ge=2)
    """Tokens that the model sees at once; by default its context."""
    windows: Literal["first", "all"] = "first"
    """What is read of a longer document: its beginning, or all of it in windows, of which the mean counts."""
    keep: list[NonEmpty] | None = Field(default=None, min_length=1)
    """Documents whose likeliest class is none of these are dropped."""
    min_probability: Probability | None = None
    """Smallest probability."""
    max_probability: Probability | None = None
    """Largest probability."""
    min_score: float | None = None
    """Smallest score of a head with one output."""
    max_score: float | None = None
    """Largest score of a head with one output."""

    @model_validator(mode="after")
    def _ranges(self) -> ClassifierConfig:
        _refuse_empty_range(self.min_probability, self.max_probability, "probability")
        _refuse_empty_range(self.min_score, self.max_score, "score")
        return self

    def inputs(self, key: str) -> list[Input]:
        """The model."""
        return [Input(f"{key}.model", self.model, ("model",))]

    def check(self, key: str, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """A model that gives no such thing as is asked for."""
        model = inputs.get(f"{key}.model")
        if model is None:
            return
        yield from self._check_model(
            key, self.model, model, ("classification", "reward"), ("max_length", self.max_length)
        )
        if model.get("head") == "reward":
            of_classes = ("label", "keep", "min_probability", "max_probability")
            yield from self._without_meaning(key, of_classes, f"`{self.model}` gives one score and knows no classes")
        if model.get("head") == "classification":
            of_score = ("min_score", "max_score")
            yield from self._without_meaning(key, of_score, f"`{self.model}` gives probabilities and no score")
            if self.label is not None:
                yield from _unknown_label(f"{key}.label", self.label, model, self.model)
            for index, label in enumerate(self.keep or ()):
                yield from _unknown_label(f"{key}.keep.{index}", label, model, self.model)


class ToxicityConfig(ModelFilterConfig):
    """Drops documents with many words of a list, or which a classifier finds toxic anywhere."""

    lexicon: NonEmpty | None = None
    """A file of words and phrases, one on each line, with its weight behind a tab where that is not 1; lines that begin
    with # say nothing. Case and punctuation count for nothing. None is shipped."""
    max_share: float = Field(default=0.01, ge=0)
    """Largest share of a document's words that are in words and phrases of the list, each by its weight."""
    model: NonEmpty | None = None
    """A model with a classification head: a stage, a folder, or hf:owner/name."""
    label: NonEmpty | None = None
    """Its class of toxic texts."""
    max_length: int | None = Field(default=None, ge=2)
    """Tokens that the model sees at once; by default its context. A longer document is read in windows, of which the
    highest probability counts."""
    max_probability: Probability = 0.5
    """Largest probability of that class."""

    @model_validator(mode="after")
    def _something_to_do(self) -> ToxicityConfig:
        if self.lexicon is None and self.model is None:
            raise PydanticCustomError("toxicity", "a `lexicon` or a `model` is wanted, or both", {})
        if (self.model is None) != (self.label is None):
            raise PydanticCustomError("toxicity", "`model` and `label` go together", {})
        return self

    def inputs(self, key: str) -> list[Input]:
        """The list and the model."""
        found = [] if self.lexicon is None else [Input(f"{key}.lexicon", self.lexicon, ("file",))]
        return [*found, *([] if self.model is None else [Input(f"{key}.model", self.model, ("model",))])]

    def check(self, key: str, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """A model without such a class; settings of what is not asked for."""
        if self.lexicon is None:
            yield from self._without_meaning(key, ("max_share",), "there is no `lexicon`")
        if self.model is None or self.label is None:
            names = ("max_probability", "max_length", "precision", "device", "batch_size")
            yield from self._without_meaning(key, names, "there is no `model`")
        elif (model := inputs.get(f"{key}.model")) is not None:
            length = ("max_length", self.max_length)
            yield from self._check_model(key, self.model, model, ("classification",), length)
            yield from _unknown_label(f"{key}.label", self.label, model, self.model)
