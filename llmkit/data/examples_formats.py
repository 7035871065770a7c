"""The formats in which people keep conversations, labelled texts and words, and preferences, turned into one shape.

Every complaint names the place of the row, the key and what is wrong with it: a row that is silently dropped or half
read is a wrong result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from llmkit.config.base import Config
from llmkit.data.records import FileRecord
from llmkit.errors import DataError

ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}
_DIALOGUE_TURN = re.compile(r"\n\n(Human|Assistant):")

Values = dict[str, Any]


class ColumnNames(Config):
    """Names of the columns (keys) that hold each part of a row."""

    id: str = "id"
    """Name of the example; made from its contents where it is absent."""
    task: str = "task"
    """Name of the task, where rows have one."""
    text: str = "text"
    """Text to be classified."""
    label: str = "label"
    """Class of the text."""
    tokens: str = "tokens"
    """List of a text's words, each of which has a label."""
    labels: str = "labels"
    """List of these labels."""
    messages: str = "messages"
    """List of messages with `role` and `content`."""
    conversations: str = "conversations"
    """List of ShareGPT turns with `from` and `value`."""
    system: str = "system"
    """System message of Alpaca and prompt/completion rows, where there is one."""
    instruction: str = "instruction"
    """Instruction of Alpaca rows."""
    input: str = "input"
    """What an Alpaca instruction is about; may be empty."""
    output: str = "output"
    """Answer of Alpaca rows."""
    prompt: str = "prompt"
    """Prompt: a text, or a list of messages."""
    completion: str = "completion"
    """Completion of a prompt: a text, or a list with one message."""
    chosen: str = "chosen"
    """The better answer: a text, a list of messages, or a whole dialogue."""
    rejected: str = "rejected"
    """The worse answer, in the same shape."""


def normalize(record: FileRecord, format: str, columns: ColumnNames) -> Values:
    """A record in the shape of its kind.

    Args:
        record: the record.
        format: a name of `FORMATS`.
        columns: names of its columns.

    Returns:
        `id` and `task` (None where absent), `metadata` (keys that mean nothing here), and `messages`, or `text` and
        `label`, or `words` and `labels`, or `prompt`, `chosen` and `rejected`.

    Raises:
        DataError: the row is malformed.
    """
    if record.problem is not None:
        raise DataError(record.problem, where=record.place)
    reader, _, used = _FORMATS[format]
    values = reader(record, columns)
    known = {getattr(columns, name) for name in (*used, "id", "task")}
    values["metadata"] = {key: _plain(value) for key, value in record.values.items() if key not in known}
    values["id"] = _identity(record, columns.id)
    task = record.values.get(columns.task)
    values["task"] = None if task is None else _text(task, columns.task, record)
    return values


def kind_of_format(format: str) -> str:
    """ "conversations", "labels", "tags" or "preferences"."""
    return _FORMATS[format][1]


def detect_format(record: FileRecord, columns: ColumnNames, wanted: str) -> str:
    """The format of a row by its keys, among those of the kind `wanted` as far as one fits.

    Raises:
        DataError: the keys fit no format.
    """
    keys = record.values.keys()
    fitting = [name for name, needed in _NEEDED if all(getattr(columns, part) in keys for part in needed)]
    for name in [name for name in fitting if kind_of_format(name) == wanted] + fitting:
        if name == "dialogues" and isinstance(record.values[columns.chosen], list):
            return "preferences"
        return name
    possible = [" and ".join(f"`{getattr(columns, part)}`" for part in needed) for _, needed in _NEEDED]
    raise DataError(
        f"the row has the keys {', '.join(f'`{key}`' for key in keys) or '(none)'}, which fit no known format.",
        where=record.place,
        hint=f"A row has {', or '.join(dict.fromkeys(possible))}; name other columns in `columns`.",
    )


def _messages_row(record: FileRecord, columns: ColumnNames) -> Values:
    return {"messages": _conversation(_messages(record, columns.messages), record)}


def _sharegpt(record: FileRecord, columns: ColumnNames) -> Values:
    messages = []
    for number, turn in enumerate(_list(record, columns.conversations)):
        key = f"{columns.conversations}[{number}]"
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            raise DataError(f"`{key}` has to be an object with `from` and `value`.", where=record.place)
        role = _SHAREGPT_ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
        if role is None:
            known = ", ".join(_SHAREGPT_ROLES)
            raise DataError(f"`{key}.from` is {turn['from']!r}, which is not one of: {known}.", where=record.place)
        messages.append({"role": role, "content": _text(turn["value"], f"{key}.value", record)})
    return {"messages": _conversation(messages, record)}


def _alpaca(record: FileRecord, columns: ColumnNames) -> Values:
    instruction = _text(record.values.get(columns.instruction), columns.instruction, record)
    about = record.values.get(columns.input)
    about = "" if about is None else _text(about, columns.input, record)
    asked = f"{instruction}\n\n{about}" if about.strip() else instruction
    answer = _text(record.values.get(columns.output), columns.output, record)
    return {"messages": _conversation([*_system(record, columns), *_exchange(asked, answer)], record)}


def _prompt_completion(record: FileRecord, columns: ColumnNames) -> Values:
    prompt = _prompt(record, columns)
    completion = record.values.get(columns.completion)
    if isinstance(completion, list):
        messages = [*prompt, *_messages(record, columns.completion)]
    else:
        messages = [*prompt, {"role": "assistant", "content": _text(completion, columns.completion, record)}]
    return {"messages": _conversation(messages, record)}


def _prompt(record: FileRecord, columns: ColumnNames) -> list[dict[str, str]]:
    if isinstance(record.values.get(columns.prompt), list):
        return _messages(record, columns.prompt)
    text = _text(record.values.get(columns.prompt), columns.prompt, record)
    return [*_system(record, columns), {"role": "user", "content": text}]


def _system(record: FileRecord, columns: ColumnNames) -> list[dict[str, str]]:
    value = record.values.get(columns.system)
    return [] if value is None else [{"role": "system", "content": _text(value, columns.system, record)}]


def _exchange(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _labelled(record: FileRecord, columns: ColumnNames) -> Values:
    text = _text(record.values.get(columns.text), columns.text, record)
    if not text.strip():
        raise DataError(f"`{columns.text}` is empty.", where=record.place)
    return {"text": text, "label": _label(record.values.get(columns.label), columns.label, record)}


def _label(label: Any, key: str, record: FileRecord) -> str:
    if isinstance(label, bool):
        label = "true" if label else "false"
    elif isinstance(label, int):
        label = str(label)
    name = _text(label, key, record, wanted="a text or a whole number").strip()
    if not name:
        raise DataError(f"`{key}` is empty.", where=record.place)
    return name


def _tagged(record: FileRecord, columns: ColumnNames) -> Values:
    words, labels = _list(record, columns.tokens), _list(record, columns.labels)
    if len(words) != len(labels):
        raise DataError(
            f"`{columns.tokens}` has {len(words)} words and `{columns.labels}` {len(labels)} labels.",
            where=record.place,
        )
    if not words:
        raise DataError(f"`{columns.tokens}` is empty.", where=record.place)
    for number, word in enumerate(words):
        key = f"{columns.tokens}[{number}]"
        if not _text(word, key, record).strip():
            raise DataError(f"`{key}` is empty.", where=record.place)
    named = [_label(label, f"{columns.labels}[{number}]", record) for number, label in enumerate(labels)]
    return {"words": words, "labels": named}


def _preference(record: FileRecord, columns: ColumnNames) -> Values:
    contexts, answers = zip(*(_answer(record, key) for key in (columns.chosen, columns.rejected)), strict=True)
    if contexts[0] != contexts[1]:
        raise DataError(f"`{columns.chosen}` and `{columns.rejected}` answer different prompts.", where=record.place)
    prompt = contexts[0] or (_prompt(record, columns) if columns.prompt in record.values else [])
    return _pair(prompt, answers[0], answers[1], record, columns)


def _answer(record: FileRecord, key: str) -> tuple[list[dict[str, str]], str]:
    """What comes before the answer, where it is given with it, and the answer."""
    value = record.values.get(key)
    if not isinstance(value, list):
        return [], _text(value, key, record)
    messages = _messages(record, key)
    if not messages or messages[-1]["role"] != "assistant":
        raise DataError(f"the last message of `{key}` has to be the assistant's.", where=record.place)
    return messages[:-1], messages[-1]["content"]


def _dialogues(record: FileRecord, columns: ColumnNames) -> Values:
    chosen, rejected = (_turns(record, key) for key in (columns.chosen, columns.rejected))
    if chosen[:-1] != rejected[:-1]:
        raise DataError(
            f"`{columns.chosen}` and `{columns.rejected}` differ before the last answer.", where=record.place
        )
    return _pair(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], record, columns)


def _turns(record: FileRecord, key: str) -> list[dict[str, str]]:
    text = _text(record.values.get(key), key, record)
    parts = _DIALOGUE_TURN.split(text)
    if parts[0].strip() or len(parts) < 3:
        raise DataError(f"`{key}` has to begin with a blank line and `Human:` or `Assistant:`.", where=record.place)
    names = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": names[name], "content": said.strip()} for name, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if turns[-1]["role"] != "assistant":
        raise DataError(f"`{key}` has to end with what the assistant says.", where=record.place)
    return turns


def _pair(prompt: list[dict[str, str]], chosen: str, rejected: str, record: FileRecord, columns: ColumnNames) -> Values:
    prompt = _without_empty_system(prompt)
    _check_roles(prompt, record)
    if not prompt or prompt[-1]["role"] != "user":
        raise DataError("the prompt has to end with what the user says.", where=record.place)
    if not chosen.strip():
        raise DataError(f"`{columns.chosen}` is empty.", where=record.place)
    if chosen == rejected:
        raise DataError(f"`{columns.chosen}` and `{columns.rejected}` are the same.", where=record.place)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _conversation(messages: list[dict[str, str]], record: FileRecord) -> list[dict[str, str]]:
    messages = _without_empty_system(messages)
    _check_roles(messages, record)
    if not messages or messages[-1]["role"] != "assistant":
        raise DataError("the last message has to be the assistant's: it is what is learned.", where=record.place)
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and not message["content"].strip():
            raise DataError(f"message {number + 1}, the assistant's, is empty.", where=record.place)
    if len(messages) == 1:
        raise DataError("there is no message before the assistant's.", where=record.place)
    return messages


def _without_empty_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return [message for message in messages if message["role"] != "system" or message["content"].strip()]


def _check_roles(messages: list[dict[str, str]], record: FileRecord) -> None:
    if any(message["role"] == "system" for message in messages[1:]):
        raise DataError("a system message can only be the first message.", where=record.place)


def _messages(record: FileRecord, key: str) -> list[dict[str, str]]:
    messages = []
    for number, message in enumerate(_list(record, key)):
        place = f"{key}[{number}]"
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise DataError(f"`{place}` has to be an object with `role` and `content`.", where=record.place)
        if message["role"] not in ROLES:
            known = ", ".join(ROLES)
            raise DataError(f"`{place}.role` is {message['role']!r}, which is not one of: {known}.", where=record.place)
        content = _content(message["content"], f"{place}.content", record)
        messages.append({"role": str(message["role"]), "content": content})
    return messages


def _content(value: Any, key: str, record: FileRecord) -> str:
    """Text of a message; a list of parts (`{"type": "text", "text": ...}`) is joined."""
    if not isinstance(value, list):
        return _text(value, key, record)
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise DataError(f"`{key}` has a part that is not text, and only text is read.", where=record.place)
    return "".join(_text(part.get("text"), f"{key}.text", record) for part in value)


def _list(record: FileRecord, key: str) -> list[Any]:
    value = record.values.get(key)
    if not isinstance(value, list):
        raise DataError(f"`{key}` has to be a list, and is {_shown(value)}.", where=record.place)
    return value


def _text(value: Any, key: str, record: FileRecord, wanted: str = "a text") -> str:
    if not isinstance(value, str):
        raise DataError(f"`{key}` has to be {wanted}, and is {_shown(value)}.", where=record.place)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"`{key}` is not valid Unicode (half of a surrogate pair).", where=record.place) from None
    return value


def _shown(value: Any) -> str:
    if value is None:
        return "absent or null"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _identity(record: FileRecord, key: str) -> str | None:
    value = record.values.get(key)
    if value is None or isinstance(value, (bool, float, list, dict)):
        return None
    return str(value) or None


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: dates and bytes of Parquet files become text, NaN becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value).encode("utf-8", "replace").decode()


_FORMATS: dict[str, tuple[Callable[[FileRecord, ColumnNames], Values], str, tuple[str, ...]]] = {
    "messages": (_messages_row, "conversations", ("messages",)),
    "sharegpt": (_sharegpt, "conversations", ("conversations",)),
    "alpaca": (_alpaca, "conversations", ("system", "instruction", "input", "output")),
    "prompt-completion": (_prompt_completion, "conversations", ("system", "prompt", "completion")),
    "labels": (_labelled, "labels", ("text", "label")),
    "tags": (_tagged, "tags", ("tokens", "labels")),
    "preferences": (_preference, "preferences", ("system", "prompt", "chosen", "rejected")),
    "dialogues": (_dialogues, "preferences", ("chosen", "rejected")),
}
FORMATS = tuple(_FORMATS)

# Keys that tell a format, the telling ones first.
_NEEDED = (
    ("messages", ("messages",)),
    ("sharegpt", ("conversations",)),
    ("preferences", ("prompt", "chosen", "rejected")),
    ("dialogues", ("chosen", "rejected")),
    ("alpaca", ("instruction", "output")),
    ("prompt-completion", ("prompt", "completion")),
    ("labels", ("text", "label")),
    ("tags", ("tokens", "labels")),
)
