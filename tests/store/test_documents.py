from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkit.errors import ArtifactError
from llmkit.store.documents import (
    Document,
    count_documents,
    document_id,
    read_documents,
    read_texts,
    write_documents,
)


def make(number: int, split: str = "train") -> Document:
    text = f"Text {number}: näïve ☃ \U0001f600\nsecond line"
    document = Document(document_id(text), text, "planted", f"file-{number}", metadata={"b": "2", "a": str(number)})
    return replace(document, split=split, license="MIT" if number % 2 else None)


def test_id_is_the_start_of_the_sha256() -> None:
    # sha256 of "abc" is the example of FIPS 180-2.
    assert document_id("abc") == "ba7816bf8f01cfea414140de5dae2223"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    documents = [make(number, ("train", "test", "validation")[number % 3]) for number in range(10)]
    counts = write_documents(tmp_path, documents, rows_per_file=3)
    assert counts == {"train": 4, "validation": 3, "test": 3}
    assert list(read_documents(tmp_path, ("train",))) == [documents[i] for i in (0, 3, 6, 9)]
    assert list(read_documents(tmp_path)) == [documents[i] for i in (0, 3, 6, 9, 2, 5, 8, 1, 4, 7)]
    assert list(read_texts(tmp_path, ("test", "validation"))) == [documents[i].text for i in (2, 5, 8, 1, 4, 7)]
    assert [count_documents(tmp_path, split) for split in ("train", "validation", "test")] == [4, 3, 3]
    files = sorted(path.name for path in (tmp_path / "documents").iterdir())
    assert files == ["test-00000.parquet", "train-00000.parquet", "train-00001.parquet", "validation-00000.parquet"]


def test_equal_documents_give_equal_bytes(tmp_path: Path) -> None:
    documents = [make(number) for number in range(2500)]
    reordered = [replace(d, metadata=dict(reversed(list(d.metadata.items())))) for d in documents]
    write_documents(tmp_path / "a", documents)
    write_documents(tmp_path / "b", iter(reordered))
    name = "documents/train-00000.parquet"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_other_tools_open_it_with_its_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write_documents(tmp_path, [make(0), make(1, "validation"), make(2, "test"), make(3)])
    loaded = datasets.load_dataset(str(tmp_path / "documents"), cache_dir=str(tmp_path / "cache"))
    assert {name: part["text"][:] for name, part in loaded.items()} == {
        "train": [make(0).text, make(3).text],
        "validation": [make(1).text],
        "test": [make(2).text],
    }


def test_large_texts_are_written_a_group_at_a_time(tmp_path: Path) -> None:
    texts = ["x" * (9 << 20)] * 4
    write_documents(tmp_path, (Document(str(i), text, "s", "p") for i, text in enumerate(texts)))
    assert pq.read_metadata(tmp_path / "documents/train-00000.parquet").num_row_groups == 2
    assert [len(text) for text in read_texts(tmp_path)] == [9 << 20] * 4


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no documents here"):
        next(read_documents(tmp_path))


def test_foreign_and_damaged_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    pq.write_table(pa.table({"body": ["a"]}), folder / "train-00000.parquet")
    with pytest.raises(ArtifactError, match=r"train-00000\.parquet: the file has no column `id`"):
        next(read_documents(tmp_path))
    (folder / "train-00000.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ArtifactError, match="cannot be read"):
        next(read_documents(tmp_path))


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        next(read_documents(tmp_path, ("dev",)))
