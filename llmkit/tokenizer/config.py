"""Settings of the tokenizer stage."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmkit.config.base import Facts, Finding, Input, StageConfig, differs
from llmkit.tokenizer.special import BPE_TOKENS, MASKED_BPE_TOKENS, WORDPIECE_TOKENS
from llmkit.tokenizer.templates import check_template_name, template_inputs

_BYTES = 256
_SPECIAL = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_BYTE_LEVEL = ("bpe", "unigram")
_ONLY_FOR = {
    **dict.fromkeys(("digits", "whitespace", "chat_template", "masked"), _BYTE_LEVEL),
    "min_frequency": ("bpe", "wordpiece"),
    "lowercase": ("wordpiece",),
}


class TokenizerConfig(StageConfig):
    """Train a tokenizer on documents."""

    kind: ClassVar[str] = "tokenizer"

    stage: Literal["tokenizer"] = "tokenizer"
    data: str
    """Documents whose training part the tokenizer learns from: a stage or a path."""
    algorithm: Literal["bpe", "unigram", "wordpiece"] = "bpe"
    """bpe: byte-level, loses nothing; for causal models, or masked ones with `masked`. unigram: the same with tokens
    chosen by likelihood in place of merges (needs the extra `unigram`). wordpiece: as BERT has it."""
    masked: bool = False
    """For masked models (bpe and unigram): <s>, </s> and <mask> as RoBERTa has them, and no turns of conversations."""
    vocab_size: int = Field(default=32_768, ge=1, le=2**31 - 1)
    """Number of tokens wanted, special tokens included; a small corpus may give fewer."""
    min_frequency: int = Field(default=2, ge=1)
    """How often a pair of pieces must occur to become a token (bpe and wordpiece)."""
    special_tokens: list[str] = Field(default_factory=list)
    """Further special tokens, written <name> or [name], beside those that the algorithm always has."""
    chat_template: str | None = "chatml"
    """How a conversation becomes text (bpe and unigram): "chatml", a file NAME.jinja, jinja2 text, or null for none."""
    max_bytes: int | None = Field(default=1_000_000_000, ge=1)
    """Bytes of text to learn from; of a larger corpus, a random part of about this size. Null: all of it."""
    sources: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """Share of each source in the text to learn from, against the others' ({web: 2, code: 1}); sources that are not
    named are left out. One that is too small for its share is taken whole, and the others fill up. By default all
    documents are taken alike."""
    compare: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Tokenizers to measure beside this one, by source and language: stages, folders with `tokenizer.json`, models."""
    digits: int = Field(default=3, ge=1, le=3)
    """Most digits of a number in one token (bpe and unigram); 1 makes arithmetic easier to learn."""
    whitespace: Literal["runs", "single"] = "runs"
    """Whether several blanks or line ends can be one token (bpe and unigram), as suits indented code."""
    lowercase: bool = True
    """Whether case and accents are dropped (wordpiece only)."""

    def inputs(self) -> list[Input]:
        """The documents, the template where it is a file, and the tokenizers to compare with."""
        others = [
            Input(f"compare.{number}", other, ("tokenizer", "model", "tokens"))
            for number, other in enumerate(self.compare)
        ]
        return [
            Input("data", self.data, ("documents",)),
            *template_inputs("chat_template", self.chat_template),
            *others,
        ]

    def facts(self, inputs: Mapping[str, Facts]) -> Facts:
        """A tokenizer of at most the size asked for."""
        masked = self.masked or self.algorithm == "wordpiece"
        return Facts(
            "tokenizer",
            {
                "vocab_size": self.vocab_size,
                "algorithm": self.algorithm,
                "chat_template": not masked and self.chat_template is not None,
                "mask_token": masked,
            },
        )

    def check(self, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """Sizes, special tokens and the template's name."""
        yield from self._check_size()
        yield from self._check_special_tokens()
        for key, algorithms in _ONLY_FOR.items():
            changed = getattr(self, key) not in (None, type(self).model_fields[key].default)
            if changed and self.algorithm not in algorithms:
                yield Finding(
                    f"`{key}` has no meaning for the algorithm {self.algorithm}; it belongs to "
                    f"{' and '.join(algorithms)}.",
                    key=key,
                    hint="Remove the key.",
                )
        if self.masked and self.chat_template is not None and differs(self, "chat_template"):
            yield Finding(
                "a tokenizer for masked models has no chat template.", key="chat_template", hint="Remove the key."
            )
        yield from check_template_name("chat_template", self.chat_template)

    def own_tokens(self) -> tuple[str, ...]:
        """The special tokens that such a tokenizer always has; they take the first ids, in this order."""
        if self.algorithm == "wordpiece":
            return WORDPIECE_TOKENS
        return MASKED_BPE_TOKENS if self.masked else BPE_TOKENS

    def _check_size(self) -> Iterator[Finding]:
        special = len(self.own_tokens()) + len(self.special_tokens)
        least = special + (_BYTES if self.algorithm in _BYTE_LEVEL else 1)
        if self.vocab_size < least:
            rest = f" and the {_BYTES} bytes" if self.algorithm in _BYTE_LEVEL else " and a character"
            yield Finding(
                f"a vocabulary of {self.vocab_size} tokens has no room for the {special} special tokens{rest}.",
                key="vocab_size",
                hint=f"Use at least {least}.",
            )

    def _check_special_tokens(self) -> Iterator[Finding]:
        seen = set(self.own_tokens())
        for index, text in enumerate(self.special_tokens):
            key = f"special_tokens.{index}"
            if not _SPECIAL.fullmatch(text):
                yield Finding(
                    f"the special token {text!r} could be ordinary text.", key=key, hint="Write <name> or [name]."
                )
            if text in seen:
                yield Finding(f"the special token {text!r} is there already.", key=key, hint="Remove it.")
            seen.add(text)
