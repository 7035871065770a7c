"""Reward functions against hand-made cases, and how a config names them."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from llmkit.config.problems import findings_of
from llmkit.rlhf.rewards import REWARDS, Reward, RewardFunction, RewardName, last_number

ADAPTER: TypeAdapter[RewardFunction] = TypeAdapter(Reward)


def score(written: str | dict[str, Any], completion: str, reference: str = "") -> float:
    return ADAPTER.validate_python(written).score("what?", completion, reference)


@pytest.mark.parametrize(
    ("written", "completion", "reference", "expected"),
    [
        ("exact_match", " The  answer\n", "the answer", 1.0),
        ("exact_match", "the answer.", "the answer", 0.0),
        ({"name": "exact_match", "ignore_punctuation": True}, "the answer.", "the answer", 1.0),
        ({"name": "exact_match", "ignore_case": False}, "The answer", "the answer", 0.0),
        ("contains", "it is in Textwrap.", "textwrap", 1.0),
        ("contains", "it is in os.", "textwrap", 0.0),
        ("contains", "anything", " ", 0.0),
        ({"name": "contains", "text": "json"}, "use json", "other", 1.0),
        ("word_overlap", "the red cat", "a red cat sat", 2 * 2 / (3 + 4)),
        ("word_overlap", "cat cat cat", "cat", 2 * 1 / (3 + 1)),
        ("word_overlap", "dog", "cat", 0.0),
        ("word_overlap", "", "", 0.0),
        ({"name": "length", "maximum": 3}, "one two three", "", 1.0),
        ({"name": "length", "maximum": 3}, "one two three four", "", 0.0),
        ({"name": "length"}, "  ", "", 0.0),
        ({"name": "length", "unit": "characters", "minimum": 2, "maximum": 4}, " abcd ", "", 1.0),
        ({"name": "format", "pattern": r"\d+ (apples|pears)"}, " 12 pears\n", "", 1.0),
        ({"name": "format", "pattern": r"\d+ (apples|pears)"}, "12 pears!", "", 0.0),
        ({"name": "format", "pattern": "<a>.*</a>"}, "<a>\n</a>", "", 1.0),
        ("json_valid", '{"a": [1, 2]}', "", 1.0),
        ("json_valid", '{"a": NaN}', "", 0.0),
        ("json_valid", "{'a': 1}", "", 0.0),
        ("json_valid", 'Here:\n```json\n{"a": 1}\n```\ndone', "", 1.0),
        ({"name": "json_valid", "type": "object"}, "[1]", "", 0.0),
        ({"name": "json_valid", "type": "array"}, "[1]", "", 1.0),
        ("json_valid", "[" * 100_000, "", 0.0),
        ("python_compiles", "def f(x):\n    return x + 1", "", 1.0),
        ("python_compiles", "def f(x:\n    return", "", 0.0),
        ("python_compiles", "```python\nimport os\n```", "", 1.0),
        ("python_compiles", "# nothing", "", 0.0),
        ("python_compiles", "x = '\\d'", "", 1.0),
        ("python_compiles", "a\0b", "", 0.0),
        ("python_compiles", "(" * 10_000, "", 0.0),
        ("numeric_answer", "so 3 + 4 = 7", "3 plus 4\n#### 7", 1.0),
        ("numeric_answer", "it costs $1,250.00.", "#### 1250", 1.0),
        ("numeric_answer", "7 or 8", "7", 0.0),
        ("numeric_answer", "none", "7", 0.0),
        ("numeric_answer", "7", "none", 0.0),
        ("numeric_answer", "3.14", "3.1", 0.0),
        ({"name": "numeric_answer", "tolerance": 0.05}, "3.14", "3.1", 1.0),
    ],
)
def test_scores(written: str | dict[str, Any], completion: str, reference: str, expected: float) -> None:
    assert score(written, completion, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "number"),
    [("5-3", "3"), ("is -3", "-3"), ("3, 4", "4"), ("1,234,567", "1234567"), ("3,4", "3"), ("v2", None), (".5", "0.5"),
     ("12.", "12"), ("a 1.5.", "1.5"), ("-$20", "-20"), ("", None)],
)  # fmt: skip
def test_last_number(text: str, number: str | None) -> None:
    found = last_number(text)
    assert (None if found is None else format(found.normalize(), "f")) == number


@settings(deadline=None)
@given(st.sampled_from(sorted(set(REWARDS) - {"format"})), st.text(), st.text())
def test_every_text_has_a_score_between_zero_and_one(name: str, completion: str, reference: str) -> None:
    assert 0.0 <= score(name, completion, reference) <= 1.0


def test_tasks_limit_where_a_function_applies() -> None:
    function = ADAPTER.validate_python({"name": "exact_match", "tasks": ["a"]})
    assert (function.applies("a"), function.applies("b"), function.applies(None)) == (True, False, False)
    assert ADAPTER.validate_python("exact_match").applies(None)


def test_names_without_needed_settings_stand_alone() -> None:
    alone = {
        name
        for name, function in REWARDS.items()
        if [key for key, field in function.model_fields.items() if field.is_required()] == ["name"]
    }
    assert alone == set(get_args(RewardName))
    assert set(REWARDS) - alone == {"format"}


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [
        ("exact_mach", "'exact_mach' is not one of", "Did you mean `exact_match`?"),
        ({"name": "length", "maximm": 3}, "`maximm` is not a known key", "Did you mean `maximum`?"),
        ({"name": "format", "pattern": "("}, "not a regular expression", None),
        ({"name": "length", "minimum": 3, "maximum": 2}, "the maximum lies below the minimum", None),
        ("format", "this key is needed", None),
        (3, "3 is not a mapping", None),
    ],
)
def test_mistakes_are_named(written: Any, message: str, hint: str | None) -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(written)
    (_, finding) = findings_of(caught.value, written, ())[0]
    assert message in finding.message
    assert finding.hint == hint
