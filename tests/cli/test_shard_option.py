from __future__ import annotations

import pytest
from typer.testing import CliRunner

from llmkit.cli.main import app
from llmkit.cli.options import parse_shard
from llmkit.errors import ConfigError


@pytest.mark.parametrize(("text", "expected"), [(None, None), ("1/1", (1, 1)), ("3/12", (3, 12))])
def test_parts_of_a_whole(text: str | None, expected: tuple[int, int] | None) -> None:
    assert parse_shard(text) == expected


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "1/0", "-1/3", "1/3/5", "a/b", "1.5/3", "²/3"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no part of a whole"):
        parse_shard(text)


@pytest.mark.parametrize(("command", "has"), [("data", True), ("tokens", True), ("pretrain", False)])
def test_commands_whose_work_can_be_shared_have_the_option(command: str, has: bool) -> None:
    assert ("--shard" in CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"}).output) == has
