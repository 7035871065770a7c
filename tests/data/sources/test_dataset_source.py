from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkit.data.sources.base import Broken, read_all
from llmkit.data.sources.config import DatasetSource
from llmkit.data.sources.dataset import DatasetReader
from llmkit.errors import DataError

ROWS = [{"body": f"Text {number}", "page": number} for number in range(7)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS[:4]), tmp_path / "set/train-00000.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[4:6]), tmp_path / "set/train-00001.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[6:]), tmp_path / "set/test-00000.parquet")
    return tmp_path / "set"


def reader(**settings: Any) -> DatasetReader:
    return DatasetReader(DatasetSource(text="body", **settings))


@pytest.mark.parametrize("streaming", [True, False])
def test_a_local_folder_of_parquet(folder: Path, streaming: bool) -> None:
    source = reader(dataset=str(folder), streaming=streaming, metadata=["page"])
    assert list(source.check()) == []
    found = list(read_all(source))
    assert [record.text for record in found] == [row["body"] for row in ROWS[:6]]
    assert [record.path for record in found][::5] == ["train:1", "train:6"]
    assert not isinstance(found[5], Broken)
    assert found[5].metadata == {"page": "5"}
    assert [record.text for record in read_all(reader(dataset=str(folder), split="test"))] == ["Text 6"]


def test_a_local_folder_of_jsonl(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.jsonl").write_text('{"body": "one"}\n{"body": null}\n{"body": "three"}\n')
    one, broken, three = read_all(reader(dataset=str(tmp_path / "set")))
    assert (one.text, three.text) == ("one", "three")
    assert isinstance(broken, Broken)
    assert broken.detail == "row 2: the column `body` is empty"


def test_columns_that_are_not_there_are_findings(folder: Path) -> None:
    found = list(reader(dataset=str(folder), metadata=["pages"]).check())
    assert [(finding.key, finding.message) for finding in found] == [
        ("metadata.0", f"`{folder}` has no column `pages`.")
    ]


@pytest.mark.parametrize("settings", [{"split": "dev"}, {"config": "other"}])
def test_a_split_or_configuration_that_is_not_there_is_a_finding(folder: Path, settings: dict[str, str]) -> None:
    (finding,) = reader(dataset=str(folder), **settings).check()
    assert finding.key == "dataset"
    assert next(iter(settings.values())) in finding.message


def test_without_a_network_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    (finding,) = reader(dataset="owner/name").check()
    assert "`owner/name` cannot be had: ConnectionError: Couldn't reach the Hub" in finding.message
    assert "network" in (finding.hint or "")
    with pytest.raises(DataError, match="cannot be had"):
        next(read_all(reader(dataset="owner/name")))


def test_a_dataset_that_breaks_off_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(*_: Any, **__: Any) -> Any:
        yield {"body": "one"}
        raise TimeoutError("read timed out")

    monkeypatch.setattr(datasets, "load_dataset", rows)
    records = read_all(reader(dataset="owner/name"))
    assert next(records).text == "one"
    with pytest.raises(DataError, match="breaks off after row 1: TimeoutError"):
        next(records)
