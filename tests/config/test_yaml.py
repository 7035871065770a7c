"""YAML with positions: what is read, where it stands, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config.yaml import apply_override, parse_yaml, read_yaml
from llmkit.errors import ConfigError


def test_positions_of_keys_and_list_items() -> None:
    source = parse_yaml("run: a\nstages:\n  one:\n    list:\n      - x\n      - y: 1\n", "f.yaml")
    assert source.lines[("run",)] == 1
    assert source.lines[("stages", "one")] == 3
    assert source.lines[("stages", "one", "list", 0)] == 5
    assert source.lines[("stages", "one", "list", 1, "y")] == 6
    assert source.where(("stages", "one", "list", 1, "y")) == "f.yaml:6: stages.one.list.1.y"
    # A key that is not there is placed at its nearest parent.
    assert source.where(("stages", "one", "absent")) == "f.yaml:3: stages.one.absent"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E3", 1000.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("-2", -2),
        ("1_000", 1000),
        ("010", 10),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("null", None),
        ("'8'", "8"),
        ("1.2.3", "1.2.3"),
        ("0x10", "0x10"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    read = parse_yaml(f"a: {text}", "f")
    assert read.data["a"] == value
    assert type(read.data["a"]) is type(value)


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("a: 1\na: 2\n", "f:2", "stands twice"),
        ("a: 1\n b: 2\n", "f:2", "not valid YAML"),
        ("- a\n", "f", "a list"),
        ("", "f", "empty"),
        ("1: a\n", "f:1", "not as a word"),
        ("? [a]\n: 1\n", "f:1", "must be a word"),
        ("a: &x [*x]\n", "f:1", "contains it"),
        ("a: !!python/object:os.system x\n", "f:1", "not valid YAML"),
        ("a: *nowhere\n", "f:1", "not valid YAML"),
    ],
)
def test_what_is_no_config_is_refused_with_its_place(text: str, where: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f")
    assert caught.value.where == where
    assert message in caught.value.message


def test_nested_aliases_are_refused_before_they_grow() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, 9)]
    with pytest.raises(ConfigError, match="aliases nested"):
        parse_yaml("\n".join(lines), "f")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="folder"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_yaml(tmp_path / "latin.yaml")


def test_overrides_set_values_make_mappings_and_are_named_in_places() -> None:
    source = parse_yaml("stages:\n  a:\n    steps: 1\n    list: [1, 2]\n", "f")
    for override in ("stages.a.steps=5", "stages.a.new.deep=3e-4", "stages.a.list.1=[7]", "stages.a.none="):
        apply_override(source, override)
    assert source.data["stages"]["a"] == {"steps": 5, "list": [1, [7]], "new": {"deep": 3e-4}, "none": None}
    assert source.where(("stages", "a", "steps")) == "--set stages.a.steps=5: stages.a.steps"


@pytest.mark.parametrize("override", ["steps", "=3", "a.list.5=1", "a.steps.x=1", "a=[", "a=b: c: d"])
def test_overrides_that_make_no_sense(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_override(parse_yaml("a:\n  steps: 1\n  list: [1]\n", "f"), override)
    assert str(caught.value.where).startswith("--set")


@given(st.text(max_size=60))
def test_any_text_is_a_mapping_or_a_config_error(text: str) -> None:
    try:
        assert isinstance(parse_yaml(text, "f").data, dict)
    except ConfigError as error:
        assert error.message
