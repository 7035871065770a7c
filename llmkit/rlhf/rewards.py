"""Named reward functions: what an answer is worth, by a rule that anyone can check.

Each is a settings class with a method `score(prompt, completion, reference) -> [0, 1]`; its settings are the keys that
a config gives beside its name. Nothing here runs what a model wrote.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from llmkit.config.base import Config

_NUMBER = re.compile(r"(?<![\w.,])-?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])-?\$?\.\d+")
_FENCE = re.compile(r"```[\w+-]*\n(.*?)(?:```|\Z)", re.DOTALL)


class RewardFunction(Config):
    """Settings that every reward function has."""

    name: str
    """Name of the function."""
    weight: float = Field(default=1.0, ge=-1000, le=1000)
    """Factor of the score in the reward; negative to punish."""
    tasks: list[Annotated[str, Field(min_length=1)]] | None = Field(default=None, min_length=1)
    """Tasks of the examples that it applies to, all by default; on the others it counts 0."""

    def applies(self, task: str | None) -> bool:
        """Whether it applies to examples of a task."""
        return self.tasks is None or task in self.tasks

    def score(self, prompt: str, completion: str, reference: str) -> float:
        """Worth of an answer, in [0, 1].

        Args:
            prompt: what the user said last.
            completion: what the model answered.
            reference: the answer that the example gives.
        """
        raise NotImplementedError


class _Comparison(RewardFunction):
    """Settings of functions that compare texts; runs of white space always count as one space."""

    ignore_case: bool = True
    """Take capitals and small letters as equal."""
    ignore_punctuation: bool = False
    """Leave out everything but letters, digits and spaces."""

    def normalized(self, text: str) -> str:
        """The text as it is compared."""
        if self.ignore_punctuation:
            text = "".join(character if character.isalnum() else " " for character in text)
        text = " ".join(text.split())
        return text.casefold() if self.ignore_case else text


class ExactMatch(_Comparison):
    """1 where the answer is the reference."""

    name: Literal["exact_match"]
    """Name of the function."""

    def score(self, prompt: str, completion: str, reference: str) -> float:
        """1 or 0."""
        return float(self.normalized(completion) == self.normalized(reference))


class Contains(_Comparison):
    """1 where the answer contains the reference, or another text."""

    name: Literal["contains"]
    """Name of the function."""
    text: str | None = Field(default=None, min_length=1)
    """What it has to contain; by default the reference answer."""

    def score(self, prompt: str, completion: str, reference: str) -> float:
        """1 or 0; 0 where there is nothing to look for."""
        wanted = self.normalized(reference if self.text is None else self.text)
        return float(bool(wanted) and wanted in self.normalized(completion))


class WordOverlap(_Comparison):
    """F1 of the words that the answer shares with the reference (Rajpurkar et al. 2016, SQuAD): a reward by degrees."""

    name: Literal["word_overlap"]
    """Name of the function."""

    def score(self, prompt: str, completion: str, reference: str) -> float:
        """Harmonic mean of precision and recall over words, repeats counted."""
        ours, theirs = self.normalized(completion).split(), self.normalized(reference).split()
        shared = sum(min(ours.count(word), theirs.count(word)) for word in set(ours))
        return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


class Length(RewardFunction):
    """1 where the answer is neither too short nor too long."""

    name: Literal["length"]
    """Name of the function."""
    unit: Literal["words", "characters"] = "words"
    """What is counted."""
    minimum: int = Field(default=1, ge=0)
    """Shortest length that is worth 1."""
    maximum: int | None = Field(default=None, ge=1)
    """Longest length that is worth 1; none by default."""

    @model_validator(mode="after")
    def _ordered(self) -> Length:
        if self.maximum is not None and self.maximum < self.minimum:
            raise PydanticCustomError("length", "the maximum lies below the minimum of {low}", {"low": self.minimum})
        return self

    def score(self, prompt: str, completion: str, reference: str) -> float:
        """1 or 0."""
        length = len(completion.split() if self.unit == "words" else completion.strip())
        return float(length >= self.minimum and (self.maximum is None or length <= self.maximum))


class Format(RewardFunction):
    """1 where the whole answer, without white space around it, matches a regular expression."""

    name: Literal["format"]
    """Name of the function."""
    pattern: str = Field(min_length=1)
    """Python regular expression; `.` also matches line ends."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise PydanticCustomError(
                "pattern", "not a regular expression: {problem}", {"problem": str(error)}
            ) from None
        return pattern

    def score(self, prompt: str, completion: str, reference: str) -> float:
        """1 or 0."""
        return float(re.fullmatch(self.pattern, completion.strip(), re.DOTALL) is not None)


class JsonValid(RewardFunction):
    """1 where the answer, or the code block in it, is one JSON document."""

    name: Literal["json_valid"]
    """Name of the function."""
    type: Literal["any", "object", "array"] = "any"
    """What the document has to be."""

    def score(self, prompt: str, completion: str, reference: str) -> float:
        """1 or 0; NaN and infinities are no JSON."""
        try:
            value = json.loads(_unfenced(completion), parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            return 0.0
        wanted: dict[str, type] = {"any": object, "object": dict, "array": list}
        return float(isinstance(value, wanted[self.type]))


class PythonCompiles(RewardFunction):
    """1 where the answer, or the code block in it, is a Python program by its grammar; it is not run."""

    name: Literal["python_compiles"]
    """Name of the function."""

    def score(self, prompt: str, completion: str, reference: str) -> float:
        """1 or 0; nothing at all is no program."""
        code = _unfenced(completion)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return float(bool(ast.parse(code).body))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return 0.0


class NumericAnswer(RewardFunction):
    """1 where the last number in the answer equals the last one in the reference (as GSM8K is scored)."""

    name: Literal["numeric_answer"]
    """Name of the function."""
    tolerance: float = Field(default=0.0, ge=0)
    """Largest absolute difference that still counts as equal."""

    def score(self, prompt: str, completion: str, reference: str) -> float:
        """1 or 0; 0 where either has no number."""
        found, wanted = last_number(completion), last_number(reference)
        if found is None or wanted is None:
            return 0.0
        return float(abs(found - wanted) <= Decimal(repr(self.tolerance)))


def last_number(text: str) -> Decimal | None:
    """The last number written in a text, in digits; commas group them, a dollar sign may stand before them."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("$", "")) if found else None


def _unfenced(text: str) -> str:
    """The first fenced code block of a text, or all of it."""
    block = _FENCE.search(text)
    return block.group(1) if block else text.strip()


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_Function = ExactMatch | Contains | WordOverlap | Length | Format | JsonValid | PythonCompiles | NumericAnswer

REWARDS: dict[str, type[RewardFunction]] = {
    get_args(function.model_fields["name"].annotation)[0]: function for function in get_args(_Function)
}
"""The reward functions by name."""


RewardName = Literal[
    "exact_match", "contains", "word_overlap", "length", "json_valid", "python_compiles", "numeric_answer"
]
"""The functions that need no settings, so that their name alone will do."""


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


_ByName = Annotated[_Function, Field(discriminator="name")]

Reward = Annotated[_ByName, BeforeValidator(_named, json_schema_input_type=RewardName | _ByName)]
"""A reward function in a config: its name alone, or a mapping with `name` and its settings."""
