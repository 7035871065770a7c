"""Prompts of the command line: from arguments, JSONL or standard input; and the JSONL that answers go to."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pydantic import ValidationError

from llmkit.errors import DataError

if TYPE_CHECKING:
    from llmkit.inference import Prompt
    from llmkit.model.sampling import Completion


@dataclass(frozen=True)
class Asked:
    """One prompt: a text to go on with or messages to answer, and settings of its own."""

    prompt: Prompt
    sampling: Mapping[str, Any]

    @property
    def shown(self) -> dict[str, Any]:
        """The prompt as a part of a row of JSONL."""
        return {"prompt" if isinstance(self.prompt, str) else "messages": self.prompt}


@dataclass(frozen=True)
class Shape:
    """How a text becomes a prompt: as it is, or as a user's message after a system message."""

    chat: bool
    system: str | None

    def __call__(self, text: str) -> Prompt:
        """The prompt of a text."""
        if not self.chat:
            return text
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, {"role": "user", "content": text}]


def read_prompts(words: list[str] | None, file: Path | None, shape: Shape) -> Iterator[Asked]:
    """Prompts from arguments and the file; without either from standard input, as one text."""
    for word in words or []:
        yield Asked(shape(word), {})
    if file is not None:
        for number, line in enumerate(_text(file).splitlines(), 1):
            if line.strip():
                yield _row(line, f"{file}:{number}", shape)
    elif not words and not sys.stdin.isatty():
        text = sys.stdin.read()
        if text:
            yield Asked(shape(text.rstrip("\n") if shape.chat else text), {})


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the file cannot be read: {error}.", where=str(file)) from None


def _row(line: str, where: str, shape: Shape) -> Asked:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"the line is not JSON: {error}.", where=where) from None
    if not isinstance(row, dict):
        raise DataError("the line is no JSON object.", where=where)
    sampling = row.get("sampling", {})
    if not isinstance(sampling, dict):
        raise DataError("`sampling` is no object of settings.", where=where)
    _check_sampling(sampling, where)
    if isinstance(row.get("prompt"), str):
        return Asked(shape(row["prompt"]), sampling)
    messages = row.get("messages")
    if isinstance(messages, list) and messages and all(_is_message(message) for message in messages):
        return Asked(messages, sampling)
    raise DataError("the line has neither a text `prompt` nor a list of `messages`.", where=where)


def _check_sampling(sampling: Mapping[str, Any], where: str) -> None:
    """Refuse settings that are none before the model is opened."""
    from llmkit.model.sampling import Sampling

    for taken in ("n", "stop_ids"):
        if taken in sampling:
            raise DataError(f"`{taken}` cannot be set by row.", where=where)
    try:
        Sampling.model_validate(sampling)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise DataError(f"`sampling.{name}`: {first['msg']}.", where=where) from None


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def answer_row(asked: Asked, answer: Completion) -> str:
    """One line of JSONL: the prompt, the answer, its tokens and their log-probabilities under the model."""
    row = {
        **asked.shown,
        "text": answer.text,
        "token_ids": answer.token_ids,
        "logprobs": [round(value, 6) for value in answer.logprobs],
        "finish_reason": answer.finish_reason,
    }
    return json.dumps(row, ensure_ascii=False)


def open_answers(file: Path, asked: list[Asked], samples: int) -> tuple[TextIO, int]:
    """The file that answers are appended to, and how many prompts it answers already.

    A line that was cut short, and the answers of a prompt that has not all of its own, are removed.

    Raises:
        DataError: the file holds answers to other prompts, or cannot be written.
    """
    lines = _text(file).splitlines(keepends=True) if file.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    done = min(len(whole) // samples, len(asked))
    for number, line in enumerate(whole[: done * samples]):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        shown = asked[number // samples].shown
        if not isinstance(row, dict) or {key: row.get(key) for key in shown} != shown:
            raise DataError(
                "the line answers another prompt.", where=f"{file}:{number + 1}", hint="Name another file for answers."
            )
    if len(whole) > len(asked) * samples:
        raise DataError("the file holds more answers than there are prompts.", where=str(file))
    try:
        opened = file.open("r+" if file.exists() else "w", encoding="utf-8")
    except OSError as error:
        raise DataError(f"the file cannot be written: {error}.", where=str(file)) from None
    opened.seek(sum(len(line.encode()) for line in whole[: done * samples]))
    opened.truncate()
    return opened, done
