"""Settings of decontamination. No heavy imports."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llmkit.config.base import Config, Input


class DecontaminationConfig(Config):
    """Drops documents that hold texts on which models are measured, found by the word n-grams they share (Brown et al.,
    "Language Models are Few-Shot Learners", 2020, appendix C)."""

    against: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    """The texts: files (JSONL, JSON, CSV, TSV, Parquet: every text in every row; or plain text), and stages of kind
    `examples` or `data`, whose held-out splits are taken."""
    ngram: int = Field(default=13, ge=3, le=50)
    """Words in an n-gram. Case, punctuation and white space do not count; a character of a script without spaces is a
    word."""
    min_words: int = Field(default=8, ge=3)
    """A text of fewer words than an n-gram, but no fewer than these, is looked for as a whole; shorter ones are not."""
    min_matches: int = Field(default=1, ge=1)
    """A document goes where this many of its n-grams are found there."""
    min_share: float = Field(default=0.0, ge=0, le=1)
    """And where they are at least this share of its n-grams, so that a long document may quote a sentence."""

    @model_validator(mode="after")
    def _in_order(self) -> DecontaminationConfig:
        if self.min_words > self.ngram:
            raise PydanticCustomError("min_words", "min_words is above ngram: such texts are no shorter than one", {})
        return self

    def inputs(self, key: str) -> list[Input]:
        """The texts as inputs of a stage, `key` being where these settings stand in it."""
        kinds = ("file", "examples", "documents")
        return [Input(f"{key}.against.{index}", value, kinds) for index, value in enumerate(self.against)]
