"""Every broken and hostile file goes through the whole stage `data`: it neither stops the run nor is it lost."""

from __future__ import annotations

import json
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from hostile_files import KINDS, MOST, Case, json_row, parquet

from llmkit.data import stage
from llmkit.data.config import DataConfig
from llmkit.errors import DataError
from llmkit.store.stage import Context

SECONDS = 100
BYTES = 3 << 29
GOOD = {
    "aaa": "The first of the good texts, read before anything else.",
    "mmm": "A good text among those that are not.",
    "zzz": "The last of the good texts, read when all is over.",
}


@dataclass
class Found:
    """What the stage has written: rows of documents (kept and dropped), rows of the quarantine, and the report."""

    documents: list[dict[str, Any]]
    quarantine: list[dict[str, Any]]
    report: dict[str, Any]


@contextmanager
def limits() -> Iterator[None]:
    """What takes longer, or much more memory, fails."""

    def give_up(number: int, frame: Any) -> None:
        raise TimeoutError(f"it took more than {SECONDS} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    handler = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, before[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def file_name(kind: str, name: str) -> str:
    number = list(KINDS[kind].cases).index(name)
    return f"case-{number:02d}{KINDS[kind].cases[name].file}"


@cache
def found(kind: str) -> Found:
    """The stage over all files of a kind, the good ones first, among the others, and last."""
    settings = KINDS[kind]
    with TemporaryDirectory() as place:
        folder = Path(place) / "in"
        folder.mkdir()
        for name, text in GOOD.items():
            (folder / f"{name}{settings.file}").write_bytes(settings.good(text))
        for name, case in settings.cases.items():
            (folder / file_name(kind, name)).write_bytes(case.data)
        source = {"kind": kind, "max_bytes": MOST, **settings.settings}
        source["folders" if kind == "code" else "files"] = [str(folder)]
        config = DataConfig.model_validate({
            "sources": [source],
            "splits": {"validation": 0.0, "test": 0.0},
            "executor": {"processes": 1},
        })  # fmt: skip
        out = Path(place) / "out"
        out.mkdir()
        with limits():
            stage.run(config, Context("corpus", 1, out))
        return Found(
            rows(out, "documents") + rows(out, "dropped"),
            rows(out, "quarantine"),
            json.loads((out / "report.json").read_text(encoding="utf-8")),
        )


def rows(directory: Path, name: str) -> list[dict[str, Any]]:
    return [row for file in sorted((directory / name).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


CASES = [(kind, name) for kind, settings in KINDS.items() for name in settings.cases]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_broken_and_hostile_files(kind: str, name: str) -> None:
    case: Case = KINDS[kind].cases[name]
    file = file_name(kind, name)
    broken = [row for row in found(kind).quarantine if row["path"] == file]
    assert [row["reason"] for row in broken] == [reason for reason, _ in case.broken], broken
    for row, (_, detail) in zip(broken, case.broken, strict=True):
        assert row["detail"].startswith(detail), row["detail"]
        assert row["source"] == kind
    texts = Counter(row["text"] for row in found(kind).documents)
    assert set(case.texts) <= set(texts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_goes_on_and_the_counts_add_up(kind: str) -> None:
    result = found(kind)
    assert set(GOOD.values()) <= {row["text"].strip() for row in result.documents}
    total = result.report["total"]
    assert total["in"] == len(result.documents) + len(result.quarantine)
    assert total["in"] == total["kept"] + sum(total["dropped"].values()) + sum(total["quarantined"].values())
    assert total["quarantined"] == dict(Counter(row["reason"] for row in result.quarantine))
    assert len(result.quarantine) == sum(len(case.broken) for case in KINDS[kind].cases.values())


def run_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes) -> Found:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(data)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    config = DataConfig.model_validate({
        "sources": [{"kind": "dataset", "dataset": str(tmp_path / "set")}],
        "splits": {"validation": 0.0, "test": 0.0},
        "executor": {"processes": 1},
    })  # fmt: skip
    stage.run(config, Context("corpus", 1, tmp_path / "out"))
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    return Found(
        rows(tmp_path / "out", "documents") + rows(tmp_path / "out", "dropped"),
        rows(tmp_path / "out", "quarantine"),
        report,
    )


def test_rows_of_a_dataset_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b"".join(json_row(text) for text in GOOD.values()) + b'{"text": null}\n' + json_row("x" * 3_000_000)
    result = run_dataset(tmp_path, monkeypatch, "a.jsonl", lines)
    (broken,) = result.quarantine
    assert (broken["reason"], broken["detail"]) == ("malformed", "row 4: the column `text` is empty")
    assert result.report["total"]["in"] == 5 == len(result.documents) + 1
    assert set(GOOD.values()) <= {row["text"] for row in result.documents}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b'{"text": "cut o'),
        ("a.parquet", parquet(["x"])[:-9]),
        ("a.csv", b"\xff\xfe,\n\x00"),
        ("a.jsonl", b""),
    ],
)
def test_a_dataset_that_its_library_cannot_read_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes
) -> None:
    with pytest.raises(DataError) as error:
        run_dataset(tmp_path, monkeypatch, name, data)
    assert "cannot be had" in error.value.message or "breaks off after row" in error.value.message
