from __future__ import annotations

from typing import Any

import pytest

from llmkit.data.examples_formats import FORMATS, ColumnNames, detect_format, kind_of_format, normalize
from llmkit.data.records import FileRecord
from llmkit.errors import DataError

PLACE = "rows.jsonl:7"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def read(row: dict[str, Any], format: str | None = None, **columns: str) -> dict[str, Any]:
    record, names = FileRecord(PLACE, row), ColumnNames(**columns)
    return normalize(record, format or detect_format(record, names, ""), names)


EXCHANGE = [user("Hi?"), assistant("Hello.")]
PARTS = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "?"}]

CONVERSATIONS = {
    "messages": ({"messages": EXCHANGE}, EXCHANGE),
    "messages with a system message": (
        {"messages": [system("Be kind."), *EXCHANGE]},
        [system("Be kind."), *EXCHANGE],
    ),
    "an empty system message says nothing": ({"messages": [system(" "), *EXCHANGE]}, EXCHANGE),
    "content in parts": (
        {"messages": [{"role": "user", "content": PARTS}, assistant("Hello.")]},
        EXCHANGE,
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]},
        EXCHANGE,
    ),
    "alpaca": ({"instruction": "Hi?", "input": "", "output": "Hello."}, EXCHANGE),
    "alpaca without the key input": ({"instruction": "Hi?", "output": "Hello."}, EXCHANGE),
    "alpaca with input": (
        {"instruction": "Sum.", "input": "1 and 2", "output": "3"},
        [user("Sum.\n\n1 and 2"), assistant("3")],
    ),
    "prompt and completion": ({"prompt": "Hi?", "completion": "Hello."}, EXCHANGE),
    "prompt and completion with a system message": (
        {"system": "Be kind.", "prompt": "Hi?", "completion": "Hello."},
        [system("Be kind."), *EXCHANGE],
    ),
    "prompt and completion as messages": ({"prompt": EXCHANGE[:1], "completion": EXCHANGE[1:]}, EXCHANGE),
    "several turns": ({"messages": [*EXCHANGE, *EXCHANGE]}, [*EXCHANGE, *EXCHANGE]),
}

TURNS = "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: How\n\nare you?\n\nAssistant:"

PREFERENCES = {
    "prompt, chosen, rejected": ({"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."}, [user("Hi?")]),
    "answers as messages": (
        {"prompt": "Hi?", "chosen": [assistant("Hello.")], "rejected": [assistant("No.")]},
        [user("Hi?")],
    ),
    "prompts inside of the answers": (
        {"prompt": "Hi?", "chosen": [*EXCHANGE], "rejected": [user("Hi?"), assistant("No.")]},
        [user("Hi?")],
    ),
    "prompts only inside of the answers": (
        {"chosen": [*EXCHANGE], "rejected": [user("Hi?"), assistant("No.")]},
        [user("Hi?")],
    ),
    "whole dialogues": (
        {"chosen": f"{TURNS} Hello.", "rejected": f"{TURNS} No."},
        [user("Hi?"), assistant("Hello."), user("How\n\nare you?")],
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations(name: str) -> None:
    row, expected = CONVERSATIONS[name]
    assert read(row) == {"messages": expected, "id": None, "task": None, "metadata": {}}


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences(name: str) -> None:
    row, prompt = PREFERENCES[name]
    found = read(row)
    assert (found["prompt"], found["chosen"], found["rejected"]) == (prompt, "Hello.", "No.")


@pytest.mark.parametrize(("label", "expected"), [("pos", "pos"), (1, "1"), (0, "0"), (True, "true"), (" x ", "x")])
def test_labels(label: object, expected: str) -> None:
    found = read({"sentence": "Good.", "y": label}, text="sentence", label="y")
    assert (found["text"], found["label"]) == ("Good.", expected)


def test_other_keys_are_kept_as_metadata_that_json_can_hold() -> None:
    row = {"id": 5, "task": "greet", "prompt": "Hi?", "completion": "Hello.", "source": "me", "score": float("nan")}
    found = read({**row, "nested": {"raw": b"x", "when": None}})
    assert (found["id"], found["task"]) == ("5", "greet")
    assert found["metadata"] == {"source": "me", "score": None, "nested": {"raw": "b'x'", "when": None}}


def test_a_format_is_told_by_its_keys_and_by_what_is_wanted() -> None:
    row = {"prompt": "p", "completion": "c", "chosen": "c", "rejected": "r", "text": "t", "label": "l"}
    record, names = FileRecord(PLACE, row), ColumnNames()
    assert detect_format(record, names, "conversations") == "prompt-completion"
    assert detect_format(record, names, "preferences") == "preferences"
    assert detect_format(record, names, "labels") == "labels"
    assert {kind_of_format(name) for name in FORMATS} == {"conversations", "labels", "tags", "preferences"}


def test_keys_that_fit_no_format_are_named() -> None:
    with pytest.raises(DataError, match="`question`, `answer`") as caught:
        read({"question": "?", "answer": "!"})
    assert caught.value.where == PLACE


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"messages": "Hi"}, "`messages` has to be a list, and is 'Hi'"),
    ({"messages": []}, "last message has to be the assistant's"),
    ({"messages": [user("Hi?")]}, "last message has to be the assistant's"),
    ({"messages": [assistant("Hello.")]}, "no message before the assistant's"),
    ({"messages": [user("Hi?"), assistant(" ")]}, "message 2, the assistant's, is empty"),
    ({"messages": [user("Hi?"), system("Late."), assistant("Hello.")]}, "can only be the first"),
    ({"messages": [{"role": "tool", "content": "x"}, assistant("y")]}, r"`messages\[0\].role` is 'tool'"),
    ({"messages": [{"content": "x"}, assistant("y")]}, r"`messages\[0\]` has to be an object with `role`"),
    ({"messages": [user("Hi?"), {"role": "assistant", "content": None}]}, r"`messages\[1\].content` has to be a text"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}, assistant("y")]}, "a part that is not text"),
    ({"messages": [user("\ud800"), assistant("y")]}, "not valid Unicode"),
    ({"conversations": [{"from": "alien", "value": "x"}]}, r"`conversations\[0\].from` is 'alien'"),
    ({"conversations": [{"from": "human"}]}, "an object with `from` and `value`"),
    ({"instruction": None, "output": "x"}, "`instruction` has to be a text, and is absent or null"),
    ({"instruction": "x", "output": ""}, "is empty"),
    ({"instruction": "x", "input": 3, "output": "y"}, "`input` has to be a text, and is 3"),
    ({"prompt": "x", "completion": 3}, "`completion` has to be a text, and is 3"),
    ({"text": " ", "label": "x"}, "`text` is empty"),
    ({"text": "x", "label": ""}, "`label` is empty"),
    ({"text": "x", "label": 0.5}, "`label` has to be a text or a whole number"),
    ({"text": "x", "label": None}, "`label` has to be a text or a whole number"),
    ({"prompt": "x", "chosen": "same", "rejected": "same"}, "are the same"),
    ({"prompt": "x", "chosen": "", "rejected": "r"}, "`chosen` is empty"),
    ({"chosen": [user("a"), assistant("x")], "rejected": [user("b"), assistant("y")]}, "answer different prompts"),
    ({"prompt": "x", "chosen": [user("a")], "rejected": "y"}, "last message of `chosen`"),
    ({"chosen": "Hello.", "rejected": "No."}, "has to begin with a blank line and `Human:`"),
    ({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "x"}, "end with what the assistant says"),
    (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
        "differ before the last answer",
    ),
    ({"chosen": "\n\nAssistant: b", "rejected": "\n\nAssistant: d"}, "prompt has to end with what the user says"),
]


@pytest.mark.parametrize(("row", "problem"), MALFORMED)
def test_malformed_rows_are_refused_with_place_and_reason(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        read(row)
    assert caught.value.where == PLACE


def test_a_record_that_could_not_be_read_is_refused() -> None:
    with pytest.raises(DataError, match="this is not JSON"):
        normalize(FileRecord(PLACE, problem="this is not JSON."), "messages", ColumnNames())
