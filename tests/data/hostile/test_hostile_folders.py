"""Folders that lead in circles, are deeper than recursion goes, or hold what is no file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from llmkit.data.sources.base import read_all
from llmkit.data.sources.config import AnySource
from llmkit.data.sources.registry import open_reader
from llmkit.errors import DataError

DEPTH = 1000
"""Folders inside each other: more than Python's calls may be, less than what a path may be long."""


def texts(**source: Any) -> list[str]:
    return [record.text for record in read_all(open_reader(TypeAdapter(AnySource).validate_python(source)))]


def test_folders_deeper_than_recursion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(DEPTH):
        Path("d").mkdir()
        os.chdir("d")
    Path("a.c").write_text("int deep;")
    os.chdir(tmp_path)
    try:
        assert texts(kind="text", files=["**/*.c"]) == ["int deep;"]
        assert texts(kind="text", files=["d/**/d/a.?"]) == ["int deep;"]
        assert texts(kind="code", folders=["."]) == ["int deep;"]
    finally:
        # pytest would remove them by recursion.
        os.chdir("/".join(["d"] * DEPTH))
        Path("a.c").unlink()
        for _ in range(DEPTH):
            os.chdir("..")
            Path("d").rmdir()


@pytest.fixture
def circles(tmp_path: Path) -> Path:
    """A file, among links that lead back, devices, and a pipe that nobody writes to."""
    (tmp_path / "a.c").write_text("int a;")
    (tmp_path / "one").symlink_to(".")
    (tmp_path / "two").symlink_to(".")
    (tmp_path / "self.c").symlink_to("self.c")
    (tmp_path / "gone.c").symlink_to("nowhere")
    (tmp_path / "zero.c").symlink_to("/dev/zero")
    (tmp_path / "folder.c").mkdir()
    os.mkfifo(tmp_path / "pipe.c")
    return tmp_path


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "text", "files": ["{}/**/*.c"]},
        {"kind": "text", "files": ["{}/**"]},
        {"kind": "text", "files": ["{}/*.c", "{}/pipe.c", "{}/one/two/*.c"]},
        {"kind": "code", "folders": ["{}"]},
    ],
)
def test_circles_and_what_is_no_file(circles: Path, source: dict[str, Any]) -> None:
    filled = {
        key: [item.format(circles) for item in value] if isinstance(value, list) else value
        for key, value in source.items()
    }
    assert texts(**filled) == ["int a;"]


def test_a_git_ignore_of_noise(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("int a;")
    (tmp_path / "b.c").write_text("int b;")
    (tmp_path / ".gitignore").write_bytes(b"\xff\x00" * 999 + b"\n[[[\n**/**/**\\\n!\nb.c\n")
    assert texts(kind="code", folders=[str(tmp_path)]) == ["int a;"]


@pytest.mark.parametrize(
    "source",
    [{"kind": "text", "files": ["{}/*.c"]}, {"kind": "text", "files": ["{}/**"]}, {"kind": "code", "folders": ["{}"]}],
)
def test_a_name_that_is_no_text_is_refused_in_words(tmp_path: Path, source: dict[str, Any]) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.c")).write_text("int a;")
    filled = {
        key: [item.format(tmp_path) for item in value] if isinstance(value, list) else value
        for key, value in source.items()
    }
    with pytest.raises(DataError, match=r"the name of the file `.*/\\xff.c` is not valid UTF-8"):
        texts(**filled)
    findings = list(open_reader(TypeAdapter(AnySource).validate_python(filled)).check())
    assert ["is not valid UTF-8" in finding.message for finding in findings] == [True]
