from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.shards import ShardWriter, TokenShards, token_dtype
from llmkit.errors import ArtifactError, DataError

TOKENIZER = {"digest": "d" * 64, "vocab_size": 300, "eos_id": 0}
DOCUMENTS = [[5, 6, 7], [], [299], list(range(1, 9)), [42, 42]]


def write(
    directory: Path,
    documents: list[list[int]] = DOCUMENTS,
    separator: int | None = 0,
    shard_tokens: int = 6,
    **other: Any,
) -> Path:
    with ShardWriter(directory / "train", {**TOKENIZER, **other}, separator, shard_tokens) as writer:
        for ids in documents:
            writer.write(ids, 10 * len(ids))
    return directory


def test_the_files_are_what_the_documentation_says(tmp_path: Path) -> None:
    write(tmp_path)
    index = json.loads((tmp_path / "train/index.json").read_text())
    assert index == {
        "format": 1, "dtype": "uint16", "tokens": 19, "documents": 5, "text_bytes": 140, "separator": 0,
        "tokenizer": TOKENIZER,
        # A shard ends with the document that brings it to six tokens: 4 + 1 + 2, 9, 3.
        "shards": [
            {"name": "00000", "tokens": 7, "documents": 3},
            {"name": "00001", "tokens": 9, "documents": 1},
            {"name": "00002", "tokens": 3, "documents": 1},
        ],
    }  # fmt: skip
    assert (tmp_path / "train/00000.bin").read_bytes() == bytes([5, 0, 6, 0, 7, 0, 0, 0, 0, 0, 43, 1, 0, 0])
    assert np.load(tmp_path / "train/00000.idx").tolist() == [0, 4, 5, 7]
    assert np.load(tmp_path / "train/00000.idx").dtype == np.uint64
    assert len(list((tmp_path / "train").iterdir())) == 7


@pytest.mark.parametrize("shard_tokens", [1, 6, 1000])
@pytest.mark.parametrize("separator", [0, None])
def test_documents_and_stream_are_read_back(tmp_path: Path, shard_tokens: int, separator: int | None) -> None:
    shards = TokenShards(write(tmp_path, separator=separator, shard_tokens=shard_tokens), "train", "d" * 64)
    ends = [] if separator is None else [separator]
    expected = [[*ids, *ends] for ids in DOCUMENTS]
    stream = list(chain.from_iterable(expected))
    assert [shards.document(index).tolist() for index in range(shards.documents)] == expected
    assert shards.tokens == len(stream)
    assert shards.text_bytes == 140
    for start in range(len(stream)):
        for count in range(len(stream) - start + 1):
            assert shards.read(start, count).tolist() == stream[start : start + count]
    assert shards.read(len(stream) - 2, 100).tolist() == stream[-2:]
    gathered = shards.gather(np.array([3, 0, 3, len(stream) - 4]), 4)
    assert gathered.tolist() == [stream[3:7], stream[:4], stream[3:7], stream[-4:]]
    assert gathered.dtype == np.int64


def test_the_type_of_ids_fits_the_vocabulary(tmp_path: Path) -> None:
    assert [token_dtype(size) for size in (1, 2**16, 2**16 + 1)] == ["uint16", "uint16", "uint32"]
    shards = TokenShards(write(tmp_path, [[70_000, 2**16]], vocab_size=100_000), "train")
    assert shards.document(0).tolist() == [70_000, 2**16, 0]
    assert (tmp_path / "train/00000.bin").stat().st_size == 12


@pytest.mark.parametrize("ids", [[300], [-1]])
def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path, ids: list[int]) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary of 300"):
        write(tmp_path, [ids])


def test_equal_documents_give_equal_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    for file in (one / "train").iterdir():
        assert file.read_bytes() == (two / "train" / file.name).read_bytes()


def test_an_interrupted_writer_leaves_no_index(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "train", TOKENIZER, 0, 100) as writer:
        writer.write([1], 1)
        raise RuntimeError
    with pytest.raises(DataError, match="no tokens of the split `train`"):
        TokenShards(tmp_path, "train")


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokens of the split `test` here\. Splits: train\."):
        TokenShards(write(tmp_path), "test")


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="another tokenizer than the one in use"):
        TokenShards(write(tmp_path), "train", "e" * 64)


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        change(index)
        (folder / "index.json").write_text(json.dumps(index))

    return apply


def save(name: str, array: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        with (folder / name).open("wb") as stream:
            np.save(stream, array, allow_pickle=True)

    return apply


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "00001.bin").unlink(), r"00001\.bin: the shard is missing"),
        (lambda folder: (folder / "00001.bin").write_bytes(b"123"), r"00001\.bin: it is 3 bytes long, and 9 tokens"),
        (lambda folder: (folder / "00000.idx").unlink(), "index of documents cannot be read"),
        (lambda folder: (folder / "00000.idx").write_bytes(b"no"), "index of documents cannot be read"),
        (save("00000.idx", np.array([0, 4, 5, 7])), "no index of 3 documents in 7 tokens"),
        (save("00000.idx", np.array([0, 4, 7], dtype=np.uint64)), "no index of 3 documents in 7 tokens"),
        (save("00000.idx", np.array([0, 4, 5, 8], dtype=np.uint64)), "no index of 3 documents in 7 tokens"),
        (save("00000.idx", np.array([print], dtype=object)), "index of documents cannot be read"),
        (lambda folder: (folder / "index.json").write_text("{"), r"index\.json: it cannot be read"),
        (lambda folder: (folder / "index.json").write_text("[]"), r"index\.json: it cannot be read"),
        (edit(lambda index: index.pop("tokens")), "it cannot be read: KeyError"),
        (edit(lambda index: index.update(format=9)), "it is of format 9; this version reads 1"),
        (edit(lambda index: index.update(tokens="19")), "a count, a shard or the tokenizer's digest is missing"),
        (edit(lambda index: index.update(shards=[])), "a count, a shard or the tokenizer's digest is missing"),
        (edit(lambda index: index["tokenizer"].update(digest=None)), "the tokenizer's digest is missing"),
        (edit(lambda index: index.update(dtype="uint8")), "ids of a vocabulary of 300 are no uint8"),
        (edit(lambda index: index["tokenizer"].update(vocab_size=70_000)), "vocabulary of 70000 are no uint16"),
        (edit(lambda index: index.update(dtype="uint32")), "it is 14 bytes long, and 7 tokens of uint32"),
        (edit(lambda index: index.update(documents=4)), "its counts are not the sums over its shards"),
    ],
)
def test_damage_is_noticed_when_it_is_opened(tmp_path: Path, damage: Callable[[Path], Any], problem: str) -> None:
    write(tmp_path)
    damage(tmp_path / "train")
    with pytest.raises(ArtifactError, match=problem):
        TokenShards(tmp_path, "train")


def test_positions_outside_are_refused(tmp_path: Path) -> None:
    shards = TokenShards(write(tmp_path), "train")
    for start in (-1, 16):
        with pytest.raises(IndexError):
            shards.gather(np.array([0, start]), 4)
    for index in (-1, 5):
        with pytest.raises(IndexError):
            shards.document(index)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=20), st.integers(1, 9), st.integers(1, 12))
def test_borders_are_where_documents_begin(lengths: list[int], shard_tokens: int, count: int) -> None:
    total = sum(lengths)
    with TemporaryDirectory() as folder:
        with ShardWriter(Path(folder) / "train", {"digest": "x", "vocab_size": 9}, None, shard_tokens) as writer:
            for length in lengths:
                writer.write([1] * length, 0)
        shards = TokenShards(Path(folder), "train")
        starts = np.arange(max(0, total - count + 1))
        rows, places = shards.borders(starts, count)
    begins = set(np.cumsum([0, *lengths]).tolist()) - {total}
    expected = [(s, b - s) for s in starts.tolist() for b in sorted(begins) if s < b < s + count]
    assert list(zip(rows.tolist(), places.tolist(), strict=True)) == expected
