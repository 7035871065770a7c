from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.loader import EpochSampler, TokenWindows
from llmkit.data.shards import ShardWriter
from llmkit.errors import ArtifactError, DataError

SPECIAL = {"digest": "d", "vocab_size": 1000, "pad_id": 901, "eos_id": None, "cls_id": 902, "sep_id": 903}


def tokens(directory: Path, count: int, shard_tokens: int = 7, document: int = 3, **special: Any) -> Path:
    """A stream 0, 1, 2, ... cut into documents of a few tokens."""
    with ShardWriter(directory / "train", {**SPECIAL, **special}, None, shard_tokens) as writer:
        for start in range(0, count, document):
            writer.write(range(start, min(start + document, count)), 1)
    return directory


def test_causal_windows(tmp_path: Path) -> None:
    windows = TokenWindows(tokens(tmp_path, 22), "train", 5)
    # 21 targets: four full windows and one target more.
    assert (len(windows), windows.targets) == (4, 21)
    assert windows.read(np.array([0, 3, 1])).tolist() == [
        [0, 1, 2, 3, 4, 5],
        [15, 16, 17, 18, 19, 20],
        [5, 6, 7, 8, 9, 10],
    ]
    first, last = windows.in_order(3)
    assert first.tokens.tolist() == [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 10], [10, 11, 12, 13, 14, 15]]
    assert first.lengths.tolist() == [5, 5, 5]
    assert last.tokens.tolist() == [[15, 16, 17, 18, 19, 20], [20, 21, 901, 901, 901, 901]]
    assert last.lengths.tolist() == [5, 1]


def test_masked_windows(tmp_path: Path) -> None:
    windows = TokenWindows(tokens(tmp_path, 11), "train", 6, masked=True)
    assert (len(windows), windows.targets) == (2, 11)
    assert windows.read(np.array([1, 0])).tolist() == [[902, 4, 5, 6, 7, 903], [902, 0, 1, 2, 3, 903]]
    (batch,) = windows.in_order(8)
    assert batch.tokens[2].tolist() == [902, 8, 9, 10, 903, 901]
    assert batch.lengths.tolist() == [6, 6, 5]


@given(st.integers(2, 60), st.integers(3, 12), st.integers(1, 5), st.integers(1, 30), st.booleans())
@settings(max_examples=60)
def test_a_pass_reads_every_token_once(
    tmp_path_factory: pytest.TempPathFactory, count: int, length: int, batch: int, shard: int, masked: bool
) -> None:
    directory = tokens(tmp_path_factory.mktemp("tokens"), count, shard_tokens=shard)
    windows = TokenWindows(directory, "train", length, masked=masked)
    targets: list[int] = []
    contexts: list[int] = []
    rows = 0
    for part in windows.in_order(batch):
        assert part.tokens.shape == (len(part.lengths), length + (not masked))
        rows += len(part.lengths)
        for row, size in zip(part.tokens.tolist(), part.lengths.tolist(), strict=True):
            if masked:
                assert (row[0], row[size - 1]) == (902, 903)
                targets += row[1 : size - 1]
            else:
                targets += row[1 : size + 1]
                contexts += row[:size]
            assert set(row[size + (not masked) :]) <= {901}
    assert targets == list(range(0 if masked else 1, count))
    assert len(targets) == windows.targets
    assert masked or contexts == list(range(count - 1))
    assert rows - len(windows) in (0, 1)


def test_an_epoch_reads_every_full_window_once(tmp_path: Path) -> None:
    windows = TokenWindows(tokens(tmp_path, 1000, shard_tokens=90), "train", 8)
    sampler = EpochSampler(len(windows), 31, 3)
    rows = np.concatenate([windows.read(sampler.indices(step)) for step in range(4)])[: len(windows)]
    assert len(windows) == 124
    assert np.array_equal(rows[np.argsort(rows[:, 0])], np.arange(0, 992, 8)[:, None] + np.arange(9))


def test_padding_is_what_the_tokenizer_has(tmp_path: Path) -> None:
    for name, special, padding in (("eos", {"pad_id": None, "eos_id": 7}, 7), ("none", {"pad_id": None}, 0)):
        (batch,) = TokenWindows(tokens(tmp_path / name, 2, **special), "train", 3).in_order(1)
        assert batch.tokens.tolist() == [[0, 1, padding, padding]]


def test_a_split_smaller_than_a_window_can_still_be_evaluated(tmp_path: Path) -> None:
    windows = TokenWindows(tokens(tmp_path, 3), "train", 8)
    assert len(windows) == 0
    ((rows, lengths),) = windows.in_order(4)
    assert (rows.tolist(), lengths.tolist()) == ([[0, 1, 2, *[901] * 6]], [2])
    with pytest.raises(DataError, match="single training window"):
        EpochSampler(len(windows), 1, 0)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    tokens(tmp_path / "a", 1)
    with pytest.raises(DataError, match="holds no token to predict"):
        TokenWindows(tmp_path / "a", "train", 4)
    with pytest.raises(DataError, match=r"no \[CLS\] and \[SEP\]"):
        TokenWindows(tokens(tmp_path / "b", 9, cls_id=None), "train", 4, masked=True)
    with pytest.raises(ArtifactError, match="another tokenizer"):
        TokenWindows(tmp_path / "a", "train", 4, tokenizer_digest="e")
    with pytest.raises(ValueError, match="windows of 2 tokens"):
        TokenWindows(tokens(tmp_path / "c", 9), "train", 2, masked=True)
    with pytest.raises(IndexError):
        TokenWindows(tmp_path / "c", "train", 4).read(np.array([2]))
