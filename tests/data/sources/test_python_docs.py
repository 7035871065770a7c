from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.data import python_objects
from llmkit.data.sources import python_docs
from llmkit.data.sources.base import read_all
from llmkit.data.sources.config import PythonDocsSource
from llmkit.data.sources.python_docs import PythonDocsReader
from llmkit.store.documents import Document

FILES = {
    "alpha.py": '"""About alpha."""\n\ndef first(a, b=1):\n    """Do the first thing."""\n    return a\n\nx = 1\n',
    "posixpath.py": 'def join(a, *p):\n    """Join."""\n    return a\n',
    "pack/__init__.py": '"""The pack."""\n',
    "pack/inner.py": 'class Thing:\n    """A thing."""\n',
    "pack/test/test_inner.py": '"""No."""\n',
}


@pytest.fixture
def small_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, source in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.setattr(python_docs, "python_modules", lambda: python_objects.python_modules(tmp_path))
    thing = python_objects.PythonObject("cthing.run", "function", "cthing", "cthing", "(x)", "Run it.", 0)
    monkeypatch.setattr(python_docs, "compiled_objects", lambda: [thing])
    monkeypatch.setattr(python_docs, "topics", lambda: {"assert": "The assert statement.", "while": "Loops."})


def read(**settings: Any) -> list[Document]:
    found = list(read_all(PythonDocsReader(PythonDocsSource(**settings))))
    assert all(isinstance(record, Document) for record in found)
    return [record for record in found if isinstance(record, Document)]


@pytest.mark.usefixtures("small_library")
def test_every_part_is_read() -> None:
    found = {document.path: document for document in read()}
    assert list(found) == [
        "reference/assert",
        "reference/while",
        "docstrings/alpha",
        "docstrings/alpha.first",
        "source/alpha.py",
        "docstrings/pack",
        "source/pack/__init__.py",
        "docstrings/pack.inner.Thing",
        "source/pack/inner.py",
        "docstrings/os.path.join",
        "source/posixpath.py",
        "docstrings/cthing.run",
    ]
    assert found["docstrings/alpha.first"].text == "alpha.first(a, b=1)\n\nDo the first thing."
    assert found["source/alpha.py"].text == FILES["alpha.py"]
    assert found["reference/while"].text == "Loops."
    assert {(d.source, d.license, d.language) for d in found.values()} == {("python-docs", "PSF-2.0", "en")}


@pytest.mark.usefixtures("small_library")
def test_source_and_docstrings_of_a_module_share_the_key_of_the_split() -> None:
    found = {document.path: document.metadata for document in read()}
    assert found["source/posixpath.py"]["module"] == found["docstrings/os.path.join"]["module"] == "os.path"
    assert found["source/alpha.py"]["module"] == found["docstrings/alpha.first"]["module"] == "alpha"
    assert found["reference/while"] == {"part": "reference", "object": "while"}
    assert found["docstrings/alpha.first"]["object"] == "alpha.first"
    assert found["source/posixpath.py"]["object"] == "os.path"
    assert found["source/alpha.py"]["object"] == found["docstrings/alpha"]["object"] == "alpha"
    assert PythonDocsSource().split_key == "module"


@pytest.mark.usefixtures("small_library")
@pytest.mark.parametrize("part", ["reference", "docstrings", "source"])
def test_parts_can_be_chosen(part: str) -> None:
    assert {document.metadata["part"] for document in read(parts=[part])} == {part}


@pytest.mark.usefixtures("small_library")
def test_modules_can_be_left_out() -> None:
    paths = [document.path for document in read(parts=["docstrings", "source"], exclude=["pack", "cthing", "os.*"])]
    assert paths == ["docstrings/alpha", "docstrings/alpha.first", "source/alpha.py", "source/posixpath.py"]
    inner = [document.path for document in read(parts=["source"], exclude=["*.inner"])]
    assert inner == ["source/alpha.py", "source/pack/__init__.py", "source/posixpath.py"]


@pytest.mark.usefixtures("small_library")
def test_docstrings_can_be_taken_out_of_the_source() -> None:
    (alpha, *_) = read(parts=["source"], strip_docstrings=True)
    assert "thing" not in alpha.text
    assert "return a" in alpha.text


def test_names_to_leave_out_that_are_no_modules_are_findings() -> None:
    findings = list(PythonDocsReader(PythonDocsSource(exclude=["tkinter", "asynci", "x*.dom"])).check())
    assert [finding.key for finding in findings] == ["exclude.1"]
    assert findings[0].hint == "Did you mean `asyncio`?"


def test_a_python_without_its_documentation_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(PythonDocsReader(PythonDocsSource()).check()) == []
    monkeypatch.setattr(python_docs, "topics", dict)
    monkeypatch.setattr(python_docs, "library_folder", lambda: tmp_path)
    found = list(PythonDocsReader(PythonDocsSource(parts=["source", "reference"])).check())
    assert [finding.key for finding in found] == ["parts.0", "parts.1"]


def test_this_python_has_what_is_wanted() -> None:
    wanted = {"reference/assert": "assert_stmt ::=", "docstrings/abc.ABC": "abc.ABC\n\nHelper class that"}
    for record in read_all(PythonDocsReader(PythonDocsSource(parts=["reference", "docstrings"]))):
        if record.path in wanted:
            assert wanted.pop(record.path) in record.text
        if not wanted:
            return
    raise AssertionError(f"not found: {wanted}")
