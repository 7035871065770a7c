"""Exported data, read by readers that are not llmkit's."""

from __future__ import annotations

import struct
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from llmkit.data.export import export_datasets, export_megatron
from llmkit.data.shards import ShardWriter
from llmkit.errors import ArtifactError
from llmkit.store.documents import Document, document_id, write_documents

DOCUMENTS = [[5, 6, 7], [], [299], list(range(1, 9)), [42, 42]]
NUMPY_OF_CODE = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}


def write_tokens(directory: Path, vocab_size: int = 300, separator: int | None = 0) -> Path:
    for split, documents in (("train", DOCUMENTS), ("validation", [[9]])):
        with ShardWriter(directory / split, {"digest": "d", "vocab_size": vocab_size}, separator, 6) as writer:
            for ids in documents:
                writer.write(ids, 1)
    (directory / "tokenizer").mkdir()
    (directory / "tokenizer/tokenizer.json").write_text("{}")
    return directory


def read_megatron(prefix: Path) -> tuple[list[list[int]], list[int], np.dtype]:
    """A reader from the description of the format: sequences, and with which of them documents begin."""
    index, data = prefix.with_suffix(".idx").read_bytes(), prefix.with_suffix(".bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, sequences, bounds = struct.unpack_from("<QBQQ", index, 9)
    assert version == 1
    position = 9 + 8 + 1 + 8 + 8
    lengths = struct.unpack_from(f"<{sequences}i", index, position)
    pointers = struct.unpack_from(f"<{sequences}q", index, position + 4 * sequences)
    documents = struct.unpack_from(f"<{bounds}q", index, position + 12 * sequences)
    assert position + 12 * sequences + 8 * bounds == len(index)
    dtype = np.dtype(NUMPY_OF_CODE[code])
    read = [np.frombuffer(data, dtype, n, at).tolist() for n, at in zip(lengths, pointers, strict=True)]
    assert sum(lengths) * dtype.itemsize == len(data)
    return read, list(documents), dtype


@pytest.mark.parametrize(("vocab_size", "dtype"), [(300, np.uint16), (70_000, np.int32)])
def test_megatron_reads_the_documents(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    export_megatron(write_tokens(tmp_path / "tokens", vocab_size), tmp_path / "out")
    sequences, bounds, found = read_megatron(tmp_path / "out/train")
    assert sequences == [[*ids, 0] for ids in DOCUMENTS]
    assert bounds == [0, 1, 2, 3, 4, 5]
    assert found == dtype
    assert read_megatron(tmp_path / "out/validation")[0] == [[9, 0]]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "tokenizer", "train.bin", "train.idx", "validation.bin", "validation.idx",
    ]  # fmt: skip


def test_documents_of_no_token_are_left_out_of_megatrons(tmp_path: Path) -> None:
    export_megatron(write_tokens(tmp_path / "tokens", separator=None), tmp_path / "out")
    assert read_megatron(tmp_path / "out/train")[:2] == ([ids for ids in DOCUMENTS if ids], [0, 1, 2, 3, 4])


def test_datasets_opens_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.data.export._DOCUMENTS_AT_ONCE", 2)
    monkeypatch.setattr("llmkit.data.export._FILE_BYTES", 30)
    export_datasets(write_tokens(tmp_path / "tokens"), tmp_path / "out")
    opened = datasets.load_from_disk(str(tmp_path / "out"))
    assert list(opened) == ["train", "validation"]
    assert opened["train"]["input_ids"][:] == [[*ids, 0] for ids in DOCUMENTS]
    assert opened["train"].column_names == ["input_ids"]
    assert opened["validation"][0] == {"input_ids": [9, 0]}
    assert len(list((tmp_path / "out/train").glob("*.arrow"))) > 1
    assert opened["train"].map(lambda row: {"length": len(row["input_ids"])})["length"][:] == [4, 1, 2, 9, 3]


def test_datasets_opens_documents(tmp_path: Path) -> None:
    documents = [Document(document_id(text), text, "s", text, metadata={"a": "b"}) for text in ("one", "zwei ☃")]
    write_documents(tmp_path / "corpus", documents)
    export_datasets(tmp_path / "corpus", tmp_path / "out")
    opened = datasets.load_from_disk(str(tmp_path / "out"))["train"]
    assert opened.to_list() == pq.read_table(tmp_path / "corpus/documents/train-00000.parquet").to_pylist()
    assert opened["text"][:] == ["one", "zwei ☃"]


def test_equal_data_give_equal_bytes(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens")
    for export in (export_megatron, export_datasets):
        made = []
        for name in ("one", "two"):
            folder = tmp_path / export.__name__ / name
            export(tokens, folder)
            made.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")})
        assert made[0] == made[1]


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for export in (export_megatron, export_datasets):
        with pytest.raises(ArtifactError, match="there are no tokens here"):
            export(tmp_path / "empty", tmp_path / "out")
    tokens = write_tokens(tmp_path / "tokens")
    with pytest.raises(ArtifactError, match="something here already"):
        export_megatron(tokens, tokens)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))
