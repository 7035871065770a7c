"""Settings of decontamination. No heavy imports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llmkit.config.base import Config, Facts, Finding, Input


class DecontaminationConfig(Config):
    """Drops documents that hold texts on which models are measured, found by the word n-grams they share (Brown et al.,
    "Language Models are Few-Shot Learners", 2020, appendix C)."""

    against: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    """The texts: files, folders, patterns or URLs (JSONL, JSON, CSV, TSV, Parquet: every text in every row; or plain
    text), stages of kind `examples`, `data` or `tokens` or their folders, whose held-out splits are taken, and stages
    of kind `eval`, which stand for the data of all their tasks but for what is made of this corpus."""
    ngram: int = Field(default=13, ge=3, le=50)
    """Words in an n-gram. Case, punctuation and white space do not count; a character of a script without spaces is a
    word."""
    min_words: int = Field(default=8, ge=3)
    """A text of fewer words than an n-gram, but no fewer than these, is looked for as a whole; shorter ones are not."""
    min_matches: int = Field(default=1, ge=1)
    """A document goes where at this many of its words an n-gram, or a whole shorter text, that is found begins."""
    min_share: float = Field(default=0.0, ge=0, le=1)
    """And where at least this share of its words is in what is found, so that a long document may quote a sentence."""

    @model_validator(mode="after")
    def _in_order(self) -> DecontaminationConfig:
        if self.min_words > self.ngram:
            raise PydanticCustomError("min_words", "min_words is above ngram: such texts are no shorter than one", {})
        return self

    def inputs(self, key: str) -> list[Input]:
        """The texts as inputs of a stage, `key` being where these settings stand in it."""
        kinds = ("file", "examples", "documents", "tokens")
        return [Input(f"{key}.against.{index}", value, kinds) for index, value in enumerate(self.against)]

    def with_measured(self, measured: Mapping[str, Sequence[str]]) -> DecontaminationConfig:
        """The same with the data of evaluations in the place of their names, each once.

        Args:
            measured: data of the tasks by the name of the stage.
        """
        values = [value for name in self.against for value in measured.get(name, (name,))]
        return self.model_copy(update={"against": list(dict.fromkeys(values))})

    def check(self, key: str, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """Inputs of which nothing is held out, `key` being where these settings stand in the stage.

        Args:
            key: as in `inputs`.
            inputs: facts of the stage's inputs.
        """
        if not self.against:
            yield Finding(
                "there is nothing to look for: all tasks measure on what is made of this corpus, which `splits` holds"
                " out.",
                key=f"{key}.against",
                hint="Name files, or leave `decontamination` out.",
            )
        for needed in self.inputs(key):
            splits = inputs[needed.key].get("splits")
            if splits is not None and not {"validation", "test"} & set(splits):
                yield Finding(
                    f"`{needed.value}` holds nothing out, so it has no text that models are measured on.",
                    key=needed.key,
                    hint="Give it `splits`, or name files, of which every row is taken.",
                )
