"""From settings and inputs to what is trained on: tokenizer, rows, labels, token sequences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llmkit.console import say
from llmkit.data.examples import Conversation, LabelledText, TaggedText, read_conversations, read_labels, read_tags
from llmkit.data.examples_build import labels_of
from llmkit.errors import ArtifactError, DataError
from llmkit.finetune.config import FinetuneConfig
from llmkit.finetune.encoding import Places, Sequences, encode_conversations, encode_texts
from llmkit.finetune.tags import encode_tags
from llmkit.store.stage import Context, ResolvedInput
from llmkit.tokenizer.templates import read_template
from llmkit.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rows:
    """The rows of one split; all lists but one are empty."""

    name: str
    conversations: Sequence[Conversation] = field(default_factory=list)
    texts: Sequence[LabelledText] = field(default_factory=list)
    tagged: Sequence[TaggedText] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.conversations) + len(self.texts) + len(self.tagged)

    @property
    def labels(self) -> set[str]:
        """The labels of texts or words that occur."""
        return {label for rows in (self.texts, self.tagged) for row in rows for label in labels_of(row)}

    def encode(
        self,
        tokenizer: Tokenizer,
        config: FinetuneConfig,
        max_length: int,
        labels: Sequence[str],
        numbers: Iterable[int] | None = None,
        *,
        causal: bool = True,
    ) -> Sequences:
        """The rows as token sequences.

        Args:
            tokenizer: of the model.
            config: what happens to rows that are too long.
            max_length: longest sequence in tokens.
            labels: names of the classes.
            numbers: which rows; all by default.
            causal: whether the model sees only what came before.
        """
        chosen = range(len(self)) if numbers is None else numbers
        place, overlong = Places(self.name), config.overlong_policy()
        if config.task == "chat":
            conversations = ((index, self.conversations[index]) for index in chosen)
            return encode_conversations(conversations, tokenizer, max_length, overlong, place)
        if config.task == "token-classification":
            tagged = ((index, self.tagged[index]) for index in chosen)
            return encode_tags(tagged, labels, tokenizer, max_length, overlong, place, causal=causal)
        texts = ((index, self.texts[index]) for index in chosen)
        return encode_texts(texts, labels, tokenizer, max_length, overlong, place)


@dataclass(frozen=True)
class Prepared:
    """Everything that training needs beside the model.

    Args:
        tokenizer: of the trained model.
        known_tokens: tokens that the model's own tokenizer has.
        max_length: longest sequence in tokens.
        labels: names of the classes.
        train, validation: the examples.
    """

    tokenizer: Tokenizer
    known_tokens: int
    max_length: int
    labels: tuple[str, ...]
    train: Sequences
    validation: Sequences


def prepare(config: FinetuneConfig, context: Context) -> Prepared:
    """Read and encode the data.

    Raises:
        DataError: a row is malformed or refused, or nothing is left to train on.
        ArtifactError: the model has no tokenizer, or one that does not fit it.
    """
    own = open_own_tokenizer(context)
    tokenizer = trained_tokenizer(config, context, own)
    max_length = sequence_length(config, context.inputs["model"])
    train, validation = read_rows(config, context, "train"), read_rows(config, context, "validation")
    labels = () if config.task == "chat" else choose_labels(config, train, context)
    causal = bool(context.inputs["model"].facts.get("causal"))
    say(f"{context.name}: encoding {len(train) + len(validation):,} examples")
    prepared = Prepared(
        tokenizer,
        own.vocab_size,
        max_length,
        labels,
        train.encode(tokenizer, config, max_length, labels, causal=causal),
        validation.encode(tokenizer, config, max_length, labels, causal=causal),
    )
    if len(prepared.train) == 0:
        raise DataError(
            f"none of the {len(train):,} training examples is left to learn from: {describe_losses(prepared.train)}.",
            where=context.place("data"),
            hint=f"The longest has {prepared.train.counts.longest:,} tokens; raise `max_length`.",
        )
    return prepared


def open_tokenizer(config: FinetuneConfig, context: Context) -> Tokenizer:
    """The tokenizer of the model that is to be trained.

    Raises:
        ArtifactError: there is none, or it has more tokens than the model.
    """
    return trained_tokenizer(config, context, open_own_tokenizer(context))


def open_own_tokenizer(context: Context) -> Tokenizer:
    """The tokenizer that the model came with.

    Raises:
        ArtifactError: there is none, or it has more tokens than the model.
    """
    model = context.inputs["model"]
    tokenizer = Tokenizer.load(model.tokenizer_directory)
    known = model.facts.get("vocab_size")
    if known is not None and tokenizer.vocab_size > known:
        raise ArtifactError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens and the model knows {known:,}.",
            where=str(model.tokenizer_directory),
            hint="The tokenizer belongs to another model.",
        )
    return tokenizer


def trained_tokenizer(config: FinetuneConfig, context: Context, tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer with the tokens and the chat template that the settings name, where they name some."""
    missing = tokenizer.missing_tokens(config.new_tokens())
    if missing:
        tokenizer = tokenizer.with_tokens(missing)
    if config.chat_template is None:
        return tokenizer
    file = context.inputs.get("chat_template")
    return tokenizer.with_chat_template(read_template(config.chat_template, None if file is None else file.path))


def sequence_length(config: FinetuneConfig, model: ResolvedInput) -> int:
    """Longest sequence in tokens: as set, and no longer than the model's context."""
    context = int(model.facts.get("context"))
    return context if config.max_length is None else min(config.max_length, context)


def read_rows(config: FinetuneConfig, context: Context, split: str) -> Rows:
    """The rows of a split.

    Raises:
        DataError: a row is malformed; the message names it.
    """
    data = context.inputs["data"]
    name = f"{data.path / split}.jsonl" if data.artifact is not None else f"{data.path} ({split} split)"
    if config.task == "chat":
        return Rows(name, conversations=read_conversations(data, split))
    if config.task == "token-classification":
        return Rows(name, tagged=read_tags(data, split))
    if data.artifact is not None:
        return Rows(name, texts=read_labels(data, split))
    return Rows(name, texts=read_labels(data, split, text=config.text_column, label=config.label_column))


def choose_labels(config: FinetuneConfig, train: Rows, context: Context) -> tuple[str, ...]:
    """Names of the classes: those of the model's own head where it knows all that the data have, so that it is trained
    on; otherwise those of the data, numbers by size and names by alphabet.

    Raises:
        DataError: fewer than two classes.
    """
    found = train.labels | set(context.inputs["data"].facts.get("labels") or ())
    model = context.inputs["model"].facts if "model" in context.inputs else None
    known = list(model.get("labels") or ()) if model is not None and model.get("head") == config.head else []
    if found and found <= set(known):
        return tuple(known)
    if len(found) < 2:
        raise DataError(
            f"the training examples have {len(found)} label, and at least two are needed.", where=context.place("data")
        )
    numeric = all(label.isdecimal() for label in found)
    return tuple(sorted(found, key=lambda label: (int(label) if numeric else 0, label)))


def describe_losses(examples: Sequences) -> str:
    """ "3 too long, 1 with nothing left to learn after cutting" """
    counts = examples.counts
    reasons = {
        "too long": counts.dropped_overlong,
        "with nothing left to learn after cutting": counts.dropped_without_target,
    }
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count) or "there are none"
