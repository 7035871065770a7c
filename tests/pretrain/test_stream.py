from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llmkit.data.loader import TokenWindows
from llmkit.data.shards import ShardWriter
from llmkit.pretrain.batches import Batch, causal_batch, masked_batch
from llmkit.pretrain.config import MaskConfig
from llmkit.pretrain.course import Course, Phase
from llmkit.pretrain.masking import Masking
from llmkit.pretrain.mixture import Mixture, Weights
from llmkit.pretrain.stream import TrainingStream
from llmkit.train.contract import WHOLE, Part

SPECIALS = {"cls_id": 1, "sep_id": 2, "pad_id": 0}


def tokens(directory: Path, documents: list[int], first: int = 10) -> Path:
    """Documents of given lengths whose tokens count on from `first`: each tells where it stands."""
    with ShardWriter(
        directory / "train", {"digest": "x", "vocab_size": 60_000, **SPECIALS}, separator=None, shard_tokens=64
    ) as writer:
        for length in documents:
            writer.write(list(range(first, first + length)), length)
            first += length
    return directory


def stream(
    windows: list[TokenWindows], course: Course, weights: Weights = (1.0,), *, part: Part = WHOLE, masked: bool = False
) -> TrainingStream:
    masking = Masking(MaskConfig(), mask_id=4, vocab_size=60_000, special_ids=range(6), seed=1) if masked else None
    return TrainingStream(
        windows,
        course,
        Mixture(weights, course),
        micro_batch_size=2,
        seed=7,
        masking=masking,
        apart=True,
        part=part,
    )


def whole(batches: list[Batch]) -> NDArray[np.int64]:
    return torch.cat([batch.input_ids for batch in batches]).numpy()


def test_phases_read_pieces_of_windows_each_token_once(tmp_path: Path) -> None:
    # 24 windows of 16; six steps of four pieces of 4, four of two halves, and the rest whole.
    windows = TokenWindows(tokens(tmp_path, [400]), "train", 16)
    course = Course([Phase(4, 4, steps=6), Phase(2, 8, steps=4), Phase(2, 16)], 17)
    source = stream([windows], course)
    seen: Counter[int] = Counter()
    for step in range(17):
        rows = whole(source.batches(step))
        expected = (4, 4) if step < 6 else (2, 8) if step < 10 else (2, 16)
        assert rows.shape == expected
        assert (np.diff(rows, axis=1) == 1).all()
        assert ((rows[:, 0] - 10) % expected[1] == 0).all()
        seen.update(rows.flatten().tolist())
    # 6 windows in quarters, 4 in halves, 14 whole: the epoch.
    assert len(seen) == 24 * 16
    assert set(seen.values()) == {1}
    assert source.epochs().tolist() == [24 * 16 / 399]


def test_phases_that_end_inside_a_window(tmp_path: Path) -> None:
    windows = TokenWindows(tokens(tmp_path, [4000]), "train", 16, masked=True)
    course = Course([Phase(3, 6, steps=5), Phase(3, 16)], 20)
    source = stream([windows], course, masked=True)
    starts = [start for step in range(20) for start in source.rows(step).starts.tolist()]
    lengths = [4 if step < 5 else 14 for step in range(20) for _ in range(3)]
    read = Counter(
        place for start, length in zip(starts, lengths, strict=True) for place in range(start, start + length)
    )
    assert set(read.values()) == {1}


@pytest.mark.parametrize("masked", [False, True])
def test_ranks_share_what_one_would_read(tmp_path: Path, masked: bool) -> None:
    paths = [tokens(tmp_path / "a", [30] * 30), tokens(tmp_path / "b", [11] * 90, 20_000)]
    windows = [TokenWindows(path, "train", 16, masked=masked) for path in paths]
    course = Course([Phase(4, 8, steps=3), Phase(8, 16)], 10)
    alone = stream(windows, course, [1.0, [[0, 1.0], [1, 3.0]]], masked=masked)
    for step in (0, 2, 3, 9):
        together = alone.batches(step)
        for count in (2, 4):
            parts = [
                batch
                for index in range(count)
                for batch in stream(
                    windows, course, [1.0, [[0, 1.0], [1, 3.0]]], part=Part(index, count), masked=masked
                ).batches(step)
            ]
            assert np.array_equal(whole(parts), whole(together))
            assert torch.equal(torch.cat([b.targets for b in parts]), torch.cat([b.targets for b in together]))
            assert torch.equal(torch.cat([b.sources for b in parts]), torch.cat([b.sources for b in together]))  # type: ignore[misc]


def test_sources_are_mixed_as_asked_and_each_is_read_once_an_epoch(tmp_path: Path) -> None:
    paths = [tokens(tmp_path / "a", [2000]), tokens(tmp_path / "b", [2000], 20_000)]
    windows = [TokenWindows(path, "train", 8) for path in paths]
    course = Course([Phase(10, 8)], 30)
    source = stream(windows, course, [[[0, 0.9], [1, 0.3]], [[0, 0.1], [1, 0.7]]])
    seen = np.concatenate([whole(source.batches(step)) for step in range(30)])
    of_second = seen[:, 0] >= 20_000
    assert source.counts().tolist() == [180, 120]
    assert of_second.sum() == 120
    # After half of the training the shares' integral is 0.75 and 0.25.
    assert abs(int(of_second[:150].sum()) - 37.5) <= 1
    assert max(Counter(seen[:, 0].tolist()).values()) == 1
    # Batches are no blocks of one source after another.
    assert sum(bool(np.diff(of_second[step * 10 : step * 10 + 10].astype(int)).min() < 0) for step in range(30)) > 15
    for batch in source.batches(3):
        assert batch.sources is not None
        assert batch.sources.tolist() == (batch.input_ids[:, 0] >= 20_000).long().tolist()


def test_documents_are_kept_apart_and_their_first_tokens_not_predicted(tmp_path: Path) -> None:
    lengths = [5, 3, 30, 1, 1, 60, 12]
    windows = TokenWindows(tokens(tmp_path, lengths), "train", 16)
    begins = set(np.cumsum([0, *lengths]) + 10)
    source = stream([windows], Course([Phase(2, 16)], 3))
    for step in range(3):
        for batch in source.batches(step):
            places = torch.arange(32) if batch.positions is None else batch.positions
            before = batch.input_ids.flatten()[places]
            assert torch.equal(batch.targets, before + 1)
            assert set(before.tolist()) == {t for t in batch.input_ids.flatten().tolist() if t + 1 not in begins}
            found = batch.input_ids.flatten().tolist()
            expected = [n for n, token in enumerate(found) if n % 16 == 0 or token in begins]
            if batch.documents is None:
                assert expected == [0, 16]
            else:
                assert batch.documents.ends.tolist() == [*expected, 32]


def test_a_border_behind_the_last_input_takes_a_target_and_cuts_nothing() -> None:
    batch = causal_batch(np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), None, (np.array([0]), np.array([3])))
    assert batch.targets.tolist() == [2, 3, 6, 7, 8]
    assert batch.documents is None


def test_padding_is_a_document_of_its_own() -> None:
    rows = np.array([[7, 8, 9, 10, 11], [12, 13, 14, 0, 0]])
    batch = causal_batch(rows, np.array([4, 2]), (np.array([0]), np.array([2])))
    assert batch.targets.tolist() == [8, 10, 11, 13, 14]
    assert batch.documents is not None
    assert batch.documents.ends.tolist() == [0, 2, 4, 6, 8]
    masking = Masking(MaskConfig(probability=0.9), mask_id=4, vocab_size=20, special_ids=range(6), seed=1)
    masked = masked_batch(rows, masking, "train", 0, np.array([5, 3]), (np.array([0]), np.array([2])))
    assert masked.documents is not None
    assert masked.documents.ends.tolist() == [0, 2, 5, 8, 10]


def test_a_frame_belongs_to_the_first_and_the_last_document(tmp_path: Path) -> None:
    windows = TokenWindows(tokens(tmp_path, [5, 7, 8]), "train", 12, masked=True)
    (batch,) = stream([windows], Course([Phase(2, 12)], 1), masked=True).batches(0)
    assert batch.documents is not None
    # Windows of ten tokens: the borders are at 5 of the first and 2 of the second, one further behind [CLS].
    cuts = {tuple(end - row * 12 for end in batch.documents.ends.tolist() if 0 < end - row * 12 < 12) for row in (0, 1)}
    assert cuts == {(6,), (3,)}
