"""Examples as token ids: pairs of answers to one prompt, and prompts that wait for an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

from llmkit.data.examples import Conversation, Message, Preference, read_conversations, read_preferences
from llmkit.errors import DataError
from llmkit.store.stage import ResolvedInput
from llmkit.tokenizer.chat import Message as ChatMessage
from llmkit.tokenizer.tokenizer import Tokenizer

Encoded = TypeVar("Encoded")


@dataclass(frozen=True)
class Answer:
    """A conversation that ends with an answer.

    Args:
        ids: tokens of all of it.
        begin, end: the answer with its end-of-turn token is `ids[begin:end]`.
    """

    ids: list[int]
    begin: int
    end: int


@dataclass(frozen=True)
class Pair:
    """The chosen and the rejected answer to one prompt."""

    chosen: Answer
    rejected: Answer

    @property
    def longest(self) -> int:
        """Tokens of the longer conversation."""
        return max(len(self.chosen.ids), len(self.rejected.ids))


@dataclass(frozen=True)
class Prompt:
    """A prompt, ready to be answered.

    Args:
        id: of the example.
        ids: tokens, the opening of the assistant's turn included.
        messages: what was said before.
        text: what the user said last.
        reference: the answer that the example gives.
        task: of the example.
    """

    id: str
    ids: list[int]
    messages: list[Message]
    text: str
    reference: str
    task: str | None


def encode_answer(tokenizer: Tokenizer, prompt: Sequence[Message], answer: str) -> Answer:
    """Tokens of a prompt and an answer to it, and where the answer stands.

    Raises:
        DataError: the chat template refuses the messages, or writes the prompt otherwise once it is answered.
    """
    opening = tokenizer.render_conversation(_messages(prompt), add_generation_prompt=True).ids
    ids, mask = tokenizer.render_conversation(_messages([*prompt, {"role": "assistant", "content": answer}]))
    begin = len(opening)
    said = [position for position in range(begin, len(ids)) if mask[position]]
    if ids[:begin] != opening or not said or said != list(range(begin, begin + len(said))):
        raise DataError("the chat template does not continue a prompt with its answer.")
    return Answer(ids, begin, begin + len(said))


def encode_pair(tokenizer: Tokenizer, row: Preference) -> Pair:
    """Tokens of a preference.

    Raises:
        DataError: it cannot be rendered, or its two answers are the same.
    """
    if row.chosen == row.rejected:
        raise DataError("the chosen and the rejected answer are the same.", where=f"example {row.id}")
    try:
        return Pair(
            encode_answer(tokenizer, row.prompt, row.chosen), encode_answer(tokenizer, row.prompt, row.rejected)
        )
    except DataError as error:
        raise DataError(error.message, where=f"example {row.id}", hint=error.hint) from None


def encode_prompt(tokenizer: Tokenizer, row: Conversation) -> Prompt:
    """Tokens of a conversation up to where the assistant is to give its last answer.

    Raises:
        DataError: it cannot be rendered.
    """
    try:
        ids = tokenizer.render_conversation(_messages(row.prompt), add_generation_prompt=True).ids
    except DataError as error:
        raise DataError(error.message, where=f"example {row.id}", hint=error.hint) from None
    users = [message["content"] for message in row.prompt if message["role"] == "user"]
    return Prompt(row.id, ids, row.prompt, users[-1] if users else "", row.reference, row.task)


@dataclass(frozen=True)
class Examples(Generic[Encoded]):
    """The examples of one split as tokens.

    Args:
        rows: those that are short enough.
        dropped: ids of those that are not.
    """

    rows: list[Encoded]
    dropped: list[str]


def load_pairs(
    source: ResolvedInput, split: str, tokenizer: Tokenizer, limit: int, most: int | None = None
) -> Examples[Pair]:
    """Preferences as tokens.

    Args:
        source: an artifact of examples, or files.
        split: name of the split; a split that an artifact does not have is empty.
        tokenizer: of the model.
        limit: most tokens of a conversation.
        most: how many rows to look at; all by default.
    """
    rows = read_preferences(source, split)[:most] if _has(source, split) else []
    return _within(((row.id, encode_pair(tokenizer, row)) for row in rows), lambda pair: pair.longest, limit)


def load_prompts(
    source: ResolvedInput, split: str, tokenizer: Tokenizer, limit: int, most: int | None = None
) -> Examples[Prompt]:
    """Conversations as prompts; arguments as for `load_pairs`, `limit` being the most tokens of a prompt."""
    rows = read_conversations(source, split)[:most] if _has(source, split) else []
    return _within(((row.id, encode_prompt(tokenizer, row)) for row in rows), lambda prompt: len(prompt.ids), limit)


def _has(source: ResolvedInput, split: str) -> bool:
    return source.artifact is None or (source.path / f"{split}.jsonl").is_file()


def _within(encoded: Iterable[tuple[str, Encoded]], length: Callable[[Encoded], int], limit: int) -> Examples[Encoded]:
    found: Examples[Encoded] = Examples([], [])
    for identity, row in encoded:
        if length(row) <= limit:
            found.rows.append(row)
        else:
            found.dropped.append(identity)
    return found


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows padded on the right to the longest: int64 [rows, longest]."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.int64)


def span_mask(begins: Tensor, ends: Tensor, length: int) -> Tensor:
    """bool [rows, length], true at positions begin <= p < end of each row."""
    positions = torch.arange(length, device=begins.device)
    return (positions >= begins[:, None]) & (positions < ends[:, None])


def _messages(messages: Sequence[Message]) -> Sequence[ChatMessage]:
    return cast("Sequence[ChatMessage]", messages)
