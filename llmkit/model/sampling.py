"""How text is generated, and what comes out of it: settings and results, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

FinishReason = Literal["stop", "length", "context"]


class Sampling(BaseModel):
    """Settings of generation. They apply in this order: repetition_penalty, temperature, top_k, top_p, min_p.

    It is the order of `transformers`. At temperature 0 the filters change nothing and the penalty does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_new_tokens: int = Field(128, ge=1, description="Most tokens to write; less where the context ends first.")
    temperature: float = Field(1.0, ge=0, description="Divides the logits; 0 takes the most likely token each time.")
    top_k: int | None = Field(None, ge=1, description="Draw from the k most likely tokens only.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw from the fewest most likely tokens that together reach this probability."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Draw from tokens at least this share as likely as the likeliest; 0 is off."
    )
    repetition_penalty: float = Field(
        1.0, gt=0, description="Above 1 makes tokens of the prompt and the answer so far less likely; 1 is off."
    )
    stop: tuple[str, ...] = Field((), description="Texts that end the answer, which is cut before them.")
    stop_ids: tuple[int, ...] | None = Field(
        None, description="Tokens that end the answer; by default the model's end-of-text tokens."
    )
    seed: int = Field(0, description="Of the random draws.")
    n: int = Field(1, ge=1, description="Answers for each prompt.")

    @property
    def distribution(self) -> tuple[object, ...]:
        """The settings that the next token's distribution depends on."""
        return self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty

    @field_validator("stop")
    @classmethod
    def _stops_are_texts(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty stop text would end every answer at once")
        return stop


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        token_ids: the tokens written. One of `stop_ids` that ended the answer is the last of them; of a stop text they
            hold no token but the one in which it begins, if other text shares that token.
        logprobs: for each token its log-probability under the model, at temperature 1 and unfiltered.
        sampling_logprobs: the same under the distribution drawn from; 0 at temperature 0.
        finish_reason: "stop" at a stop text or token, "length" at `max_new_tokens`, "context" where the context ended.
        text: the answer as text, without what ended it; None where the generator cannot decode.
    """

    token_ids: list[int]
    logprobs: list[float]
    sampling_logprobs: list[float]
    finish_reason: FinishReason
    text: str | None = None


@dataclass(frozen=True)
class Piece:
    """A part of an answer while it is written; all texts and all token ids joined are the completion's.

    Attributes:
        text: what can be shown: never part of a stop text, never half a character.
        token_ids: tokens whose text is complete with this piece.
        finish_reason: of the last piece, else None.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None


class TextGenerator(Protocol):
    """What every generation engine offers."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        *,
        keys: Sequence[int] | None = None,
    ) -> list[Completion]:
        """`sampling.n` completions of each prompt, prompt by prompt; settings are for all prompts or one for each."""
        ...

    def stream(self, prompt: Sequence[int], sampling: Sampling, *, key: int = 0) -> Iterator[Piece]:
        """One completion in pieces, as it is written."""
        ...


def settings_of(prompts: Sequence[object], sampling: Sampling | Sequence[Sampling]) -> list[Sampling]:
    """The settings of each prompt.

    Raises:
        ValueError: there are more or fewer of them than prompts.
    """
    if isinstance(sampling, Sampling):
        return [sampling] * len(prompts)
    if len(sampling) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(sampling)} settings")
    return list(sampling)
