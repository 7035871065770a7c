from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.sources.base import Broken, Record, read_all
from llmkit.data.sources.config import HtmlSource
from llmkit.data.sources.html import HtmlReader
from llmkit.errors import MissingDependencyError
from llmkit.store.documents import Document


def read(folder: Path, **settings: Any) -> dict[str, Record]:
    source = HtmlSource.model_validate({"files": [str(folder)], **settings})
    return {record.path: record for record in read_all(HtmlReader(source))}


def test_broken_files_keep_their_places(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>First.</p>")
    (tmp_path / "b.html.gz").write_bytes(gzip.compress(b"<p>Cut off.</p>" * 20)[:-9])
    (tmp_path / "c.html").write_text("<p>" + "Long. " * 400)
    (tmp_path / "d.html").write_bytes(b"<p>\xff")
    (tmp_path / "e.html.gz").write_bytes(gzip.compress(b"<p>Last.</p>"))
    (tmp_path / "f.html").write_text("<div>" * 190)
    found = read(tmp_path, max_bytes=2000)
    assert list(found) == ["a.html", "b.html.gz", "c.html", "d.html", "e.html.gz", "f.html"]
    texts = {path: record.text for path, record in found.items() if isinstance(record, Document)}
    assert texts == {"a.html": "First.", "e.html.gz": "Last.", "f.html": ""}
    broken = {path: (record.reason, record.detail) for path, record in found.items() if isinstance(record, Broken)}
    assert broken["b.html.gz"][0] == "unreadable"
    assert broken["c.html"] == ("too large", "the file is longer than 2,000 bytes")
    assert broken["d.html"] == ("encoding", "byte 3: not valid utf-8 (invalid start byte)")
    assert found["d.html"].text == "<p>\\xff"


def test_language_and_title(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<html lang='fr'><title> Un\n titre </title><p>Bonjour.</p></html>")
    (tmp_path / "b.html").write_text("<p>Sans titre.</p>")
    found = read(tmp_path)
    assert isinstance(a := found["a.html"], Document)
    assert isinstance(b := found["b.html"], Document)
    assert (a.language, dict(a.metadata), b.language, dict(b.metadata)) == ("fr", {"title": "Un titre"}, None, {})
    # What the source says of all its texts goes before what a page says of itself.
    assert isinstance(a := read(tmp_path, language="en")["a.html"], Document)
    assert a.language == "en"


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="trafilatura finds the main text alone"):
        HtmlSource.model_validate({"files": ["a"], "extraction": {"by": "trafilatura", "part": "all"}})


def test_a_missing_library_is_told_before_and_during(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.html").write_text("<p>x")
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    source = HtmlSource.model_validate({"files": [str(tmp_path)], "extraction": {"by": "trafilatura"}})
    (finding,) = HtmlReader(source).check()
    assert (finding.key, finding.hint) == ("extraction.by", "pip install 'llmkit[web]'")
    with pytest.raises(MissingDependencyError, match="needs trafilatura"):
        list(read_all(HtmlReader(source)))
