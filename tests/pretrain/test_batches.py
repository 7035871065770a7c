from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pretrain_samples import tokenizer, write_tokens

from llmkit.data.loader import TokenWindows
from llmkit.pretrain.batches import HeldOut, causal_batch, masked_batch, split_batch
from llmkit.pretrain.config import MaskConfig
from llmkit.pretrain.course import Course, Phase
from llmkit.pretrain.masking import Masking
from llmkit.pretrain.mixture import Mixture
from llmkit.pretrain.stream import TrainingStream


def masking() -> Masking:
    return Masking(MaskConfig(), mask_id=4, vocab_size=18, special_ids=range(6), seed=1)


def stream(windows: list[TokenWindows], *, batch_size: int, micro_batch_size: int, masked: bool) -> TrainingStream:
    course = Course([Phase(batch_size, windows[0].length)], 100)
    return TrainingStream(
        windows,
        course,
        Mixture([1.0] * len(windows), course),
        micro_batch_size=micro_batch_size,
        seed=5,
        masking=masking() if masked else None,
        apart=True,
    )


def test_each_position_predicts_the_next_token() -> None:
    batch = causal_batch(np.array([[1, 2, 3, 4], [5, 6, 7, 8]]))
    assert batch.input_ids.tolist() == [[1, 2, 3], [5, 6, 7]]
    assert batch.targets.tolist() == [2, 3, 4, 6, 7, 8]
    assert batch.positions is None


def test_padding_is_no_target() -> None:
    batch = causal_batch(np.array([[1, 2, 3, 4], [5, 6, 0, 0]]), np.array([3, 1]))
    assert batch.targets.tolist() == [2, 3, 4, 6]
    assert batch.positions is not None
    assert batch.positions.tolist() == [0, 1, 2, 3]


def test_hidden_tokens_are_targets_where_they_stand() -> None:
    tokens = np.random.default_rng(0).integers(6, 18, (5, 40))
    tokens[4, 7:] = 0
    batch = masked_batch(tokens, masking(), "train", 0, np.array([40, 40, 40, 40, 7]))
    assert batch.positions is not None
    assert batch.attention_mask is not None
    assert batch.attention_mask.sum(1).tolist() == [40, 40, 40, 40, 7]
    assert torch.equal(torch.from_numpy(tokens).flatten()[batch.positions], batch.targets)
    assert (batch.positions < 4 * 40 + 7).all()
    elsewhere = torch.ones(200, dtype=torch.bool)
    elsewhere[batch.positions] = False
    assert torch.equal(batch.input_ids.flatten()[elsewhere], torch.from_numpy(tokens).flatten()[elsewhere])


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_micro_batches_are_the_batch_in_parts(rows: int) -> None:
    tokens = np.random.default_rng(0).integers(6, 18, (6, 40))
    for batch in (causal_batch(tokens), masked_batch(tokens, masking(), "train", 0)):
        parts = split_batch(batch, rows)
        assert len(parts) == 6 // rows
        assert torch.equal(torch.cat([part.input_ids for part in parts]), batch.input_ids)
        assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
        if batch.positions is not None:
            moved = [part.positions + n * rows * 40 for n, part in enumerate(parts) if part.positions is not None]
            assert torch.equal(torch.cat(moved), batch.positions)


def test_an_epoch_reads_every_window_once(tmp_path: Path) -> None:
    windows = TokenWindows(write_tokens(tmp_path, {"train": 121}).path, "train", 10)
    source = stream([windows], batch_size=3, micro_batch_size=1, masked=False)
    assert len(windows) == 12
    rows = torch.cat([batch.input_ids for step in range(4) for batch in source.batches(step)])
    expected = torch.from_numpy(windows.read(np.arange(12))[:, :-1])
    assert sorted(rows.tolist()) == sorted(expected.tolist())
    assert rows.tolist() != expected.tolist()


def test_batches_do_not_depend_on_what_was_read_before(tmp_path: Path) -> None:
    windows = TokenWindows(write_tokens(tmp_path).path, "train", 10, masked=True)

    def source() -> TrainingStream:
        return stream([windows], batch_size=4, micro_batch_size=2, masked=True)

    used = source()
    for step in range(5):
        last = used.batches(step)
    for ours, theirs in zip(last, source().batches(4), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))  # type: ignore[arg-type]


def test_held_out_batches_are_always_the_same(tmp_path: Path) -> None:
    windows = TokenWindows(write_tokens(tmp_path).path, "validation", 16, masked=True)
    held_out = HeldOut(windows, batches=3, batch_size=4, masking=masking(), apart=False)
    first, second = list(held_out), list(held_out)
    assert len(first) == 3
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours.input_ids, theirs.input_ids)
        assert torch.equal(ours.targets, theirs.targets)


def test_a_small_split_is_read_whole(tmp_path: Path) -> None:
    windows = TokenWindows(write_tokens(tmp_path, {"train": 50, "validation": 48}).path, "validation", 10)
    batches = list(HeldOut(windows, batches=8, batch_size=2, masking=None, apart=False))
    targets = torch.cat([batch.targets for batch in batches])
    assert torch.equal(targets, torch.from_numpy(windows.shards.read(1, 47)))


def test_the_samples_have_the_tokenizer_they_say() -> None:
    made = tokenizer()
    assert made.encode("w0 w11") == [6, 17]
    assert (made.mask_id, made.eos_id, made.vocab_size) == (4, 5, 18)
