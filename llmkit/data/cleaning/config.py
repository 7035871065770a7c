"""Settings of cleaning: what is mended and what is dropped. No heavy imports."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llmkit.config.base import Config, Input

WordRules = Literal["english", "general"]


class FilterWithInputs(Config):
    """Settings of a filter that name files, folders or artifacts.

    The stage depends on what these hold. Who makes the filter gets the settings with the paths that were found in the
    place of what is written; their digests go into the keys of what is measured, and need not be in `measuring`.
    """

    def inputs(self, key: str) -> list[Input]:
        """The files and artifacts as inputs of a stage, `key` being where these settings stand in it."""
        raise NotImplementedError


class UnicodeConfig(Config):
    """Unicode clean-up; changes texts and drops none."""

    normalization: Literal["NFC", "NFKC", "none"] = "NFC"
    """Normalization form. NFKC also replaces ligatures, full-width letters and superscripts by plain ones."""
    line_endings: bool = True
    """Turn every kind of line break into a newline."""
    control_characters: bool = True
    """Remove control characters other than tab and newline, and code points that are no characters."""
    zero_width: bool = True
    """Remove characters without width that carry no meaning (zero-width space, byte order mark, soft hyphen); joiners,
    which do, stay."""


class LengthConfig(Config):
    """Limits of a document's length, in characters, white space around it not counted."""

    min_characters: int = Field(default=20, ge=1)
    """Shorter documents are dropped."""
    max_characters: int = Field(default=2_000_000, ge=1)
    """Longer documents are dropped."""

    @model_validator(mode="after")
    def _in_order(self) -> LengthConfig:
        if self.min_characters > self.max_characters:
            raise PydanticCustomError("length", "min_characters is above max_characters: every document would go")
        return self


class RepetitionConfig(Config):
    """Limits of repetition inside a document."""

    max_duplicate_lines: float = Field(default=0.3, gt=0, le=1)
    """Largest fraction of characters in lines that came before."""
    max_top_ngram: float = Field(default=0.3, gt=0, le=1)
    """Largest fraction of characters that the most frequent n-gram of words may cover."""
    ngram: int = Field(default=3, ge=1, le=20)
    """Words in that n-gram."""
    min_characters: int = Field(default=200, ge=0)
    """Shorter documents are not looked at."""


class CleaningConfig(Config):
    """The steps in the order in which they run; one that is `null` is left out."""

    unicode: UnicodeConfig | None = UnicodeConfig()
    """Unicode clean-up."""
    length: LengthConfig | None = LengthConfig()
    """Limits of length."""
    repetition: RepetitionConfig | None = RepetitionConfig()
    """Limits of repetition."""

    def inputs(self, key: str) -> list[Input]:
        """What filters read beside the documents, as inputs of a stage."""
        named = [(name, value) for name, value in self if isinstance(value, FilterWithInputs)]
        return [found for name, value in named for found in value.inputs(f"{key}.{name}")]
