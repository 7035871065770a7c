"""Filters in the whole stage: what they fill in, what they read, and what another threshold costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llmkit.config.base import Facts
from llmkit.data import stage
from llmkit.data.cleaning.language import Language
from llmkit.data.cleaning.urls import Urls
from llmkit.data.config import DataConfig
from llmkit.store.documents import read_documents
from llmkit.store.files import sha256_file
from llmkit.store.stage import Context, ResolvedInput

GERMAN = "Die Straße führt über das Gebirge, und niemand weiß, wo sie endet, denn es war noch keiner dort."
ENGLISH = "The road leads over the mountains, and nobody knows where it ends, as no one has ever been there."
FRENCH = "La route passe par les montagnes, et personne ne sait où elle finit, car nul n'y est jamais allé."
ROWS = [
    {"text": GERMAN, "url": "https://good.example/de"},
    {"text": FRENCH, "url": "https://good.example/fr"},
    {"text": f"{ENGLISH} Is that so?", "url": "https://news.bad.example/"},
    {"text": "@@@ ### $$$ %%% @@@ ### $$$ %%%", "url": "https://good.example/signs"},
]


def _write_files(folder: Path) -> None:
    if not (folder / "lists").exists():
        (folder / "stated.jsonl").write_text(json.dumps({"text": ENGLISH, "url": "https://good.example/en"}), "utf-8")
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
        (folder / "lists").mkdir()
        (folder / "lists" / "domains").write_text("bad.example\n", "utf-8")


def run(folder: Path, name: str, **cleaning: Any) -> Path:
    """The stage over the rows; results of tasks are kept in one place."""
    _write_files(folder)
    config = DataConfig.model_validate(
        {
            "sources": [
                {"kind": "jsonl", "files": [str(folder / f"{name}.jsonl")], "name": name, "metadata": ["url"], **stated}
                for name, stated in (("rows", {}), ("stated", {"language": "en-GB"}))
            ],
            "executor": {"processes": 1},
            "work": {"folder": str(folder / "work"), "keep": True},
            "splits": {"validation": 0.0, "test": 0.0},
            "cleaning": {"length": None, "repetition": None, **cleaning},
        }
    )
    inputs = {
        found.key: ResolvedInput(
            found.key, found.value, Path(found.value), sha256_file(Path(found.value)), Facts("file")
        )
        for found in config.inputs()
    }
    out = folder / name
    out.mkdir()
    stage.run(config, Context("corpus", 1, out, inputs))
    return out


def dropped(directory: Path) -> list[tuple[str, str, str | None]]:
    (file,) = (directory / "dropped").glob("*.parquet")
    return [(row["step"], row["reason"], row["language"]) for row in pq.read_table(file).to_pylist()]


def test_languages_are_filled_in_where_the_source_states_none(tmp_path: Path) -> None:
    urls = {"url": "url", "domains": [str(tmp_path / "lists" / "domains")]}
    out = run(tmp_path, "out", urls=urls, language={"languages": ["de", "en"]})
    documents = list(read_documents(out))
    assert [(d.text, d.language) for d in documents] == [(GERMAN, "de"), (ENGLISH, "en-GB")]
    assert dropped(out) == [
        ("language", "other_language", "fr"),
        ("urls", "domain", "en"),
        ("language", "uncertain_language", None),
    ]
    (file,) = (out / "documents").glob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    assert [(row["language.language"], row["urls.host"]) for row in rows] == [
        ("de", "good.example"),
        ("en", "good.example"),
    ]
    assert all(0.5 < row["language.probability"] <= 1 for row in rows)


def test_another_threshold_measures_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = {"url": "url", "domains": [str(tmp_path / "lists" / "domains")]}
    first = run(tmp_path, "first", urls=urls, language={})
    assert [d.language for d in read_documents(first)] == ["de", "fr", "en-GB"]

    def refuse(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Language, "measure", refuse)
    monkeypatch.setattr(Urls, "measure", refuse)
    second = run(tmp_path, "second", urls={**urls, "soft_word_threshold": 9}, language={"languages": ["fr"]})
    assert [d.language for d in read_documents(second)] == ["fr"]


def test_a_changed_list_is_read_again(tmp_path: Path) -> None:
    urls = {"url": "url", "urls": [str(tmp_path / "list")]}
    (tmp_path / "list").write_text("good.example/fr\n", "utf-8")
    first = run(tmp_path, "first", urls=urls)
    (tmp_path / "list").write_text("good.example\n", "utf-8")
    second = run(tmp_path, "second", urls=urls)
    assert [len(list(read_documents(out))) for out in (first, second)] == [4, 1]
