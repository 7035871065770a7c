"""Windows of tokens as batches to predict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmkit.data.loader import EpochSampler, TokenWindows
from llmkit.pretrain.masking import Masking
from llmkit.train.contract import WHOLE, Part, StatelessSource


class Batch(NamedTuple):
    """Sequences, and what is to be predicted at which of their positions.

    Args:
        input_ids: int64 [B, L].
        targets: int64 [N].
        positions: int64 [N], each target's place in the flattened [B * L]; None where every position has a target.
        attention_mask: bool [B, L], False at padding; None where there is none.
    """

    input_ids: Tensor
    targets: Tensor
    positions: Tensor | None = None
    attention_mask: Tensor | None = None


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on a device."""
    return Batch(*(None if part is None else part.to(device, non_blocking=True) for part in batch))  # type: ignore[arg-type]


def causal_batch(tokens: NDArray[np.int64], lengths: NDArray[np.int64] | None = None) -> Batch:
    """Each position predicts the token after it.

    Args:
        tokens: [B, L + 1].
        lengths: inputs of each row that are no padding, [B]; all by default.
    """
    ids = torch.from_numpy(tokens)
    inputs, targets = ids[:, :-1], ids[:, 1:].flatten()
    if lengths is None or (lengths == inputs.shape[1]).all():
        return Batch(inputs.contiguous(), targets)
    # Causal: what stands before the padding does not see it.
    real = _real(inputs, lengths).flatten().nonzero()[:, 0]
    return Batch(inputs.contiguous(), targets[real], real)


def masked_batch(
    tokens: NDArray[np.int64], masking: Masking, purpose: str, step: int, lengths: NDArray[np.int64] | None = None
) -> Batch:
    """Hidden tokens are predicted where they stand.

    Args:
        tokens: [B, L].
        masking: hides tokens.
        purpose: what the masks are for.
        step: number of the batch.
        lengths: tokens of each row that are no padding, [B]; all by default.
    """
    ids = torch.from_numpy(tokens)
    masked = masking.hide(ids, purpose, step)
    chosen, attention_mask = masked.chosen, None
    if lengths is not None and not (lengths == ids.shape[1]).all():
        attention_mask = _real(ids, lengths)
        chosen = chosen & attention_mask
    positions = chosen.flatten().nonzero()[:, 0]
    return Batch(masked.input_ids, ids.flatten()[positions], positions, attention_mask)


def _real(ids: Tensor, lengths: NDArray[np.int64]) -> Tensor:
    return torch.arange(ids.shape[1]) < torch.from_numpy(lengths)[:, None]


def take_rows(batch: Batch, rows: slice) -> Batch:
    """Some sequences of a masked batch of full length."""
    assert batch.positions is not None
    length = batch.input_ids.shape[1]
    begin, end = rows.start * length, rows.stop * length
    inside = (batch.positions >= begin) & (batch.positions < end)
    return Batch(batch.input_ids[rows], batch.targets[inside], batch.positions[inside] - begin)


def split_batch(batch: Batch, rows: int) -> list[Batch]:
    """A batch of sequences of full length as micro-batches of `rows` sequences."""
    length = batch.input_ids.shape[1]
    size = rows * length
    parts = []
    for number, inputs in enumerate(batch.input_ids.split(rows)):
        begin = number * size
        if batch.positions is None:
            parts.append(Batch(inputs, batch.targets[begin : begin + inputs.numel()]))
        else:
            inside = (batch.positions >= begin) & (batch.positions < begin + inputs.numel())
            parts.append(Batch(inputs, batch.targets[inside], batch.positions[inside] - begin))
    return parts


class WindowSource(StatelessSource):
    """Training batches: every epoch is a shuffle of all full windows. A pure function of seed and step.

    Args:
        windows: the training split.
        batch_size: sequences for each optimizer step.
        micro_batch_size: sequences of a micro-batch.
        seed: seed of the stage.
        masking: hides tokens, for the masked objective.
        part: this rank's rows of each batch.
    """

    def __init__(
        self,
        windows: TokenWindows,
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        masking: Masking | None,
        part: Part = WHOLE,
    ) -> None:
        self._windows = windows
        self._sampler = EpochSampler(len(windows), batch_size, seed)
        self._micro_batch_size, self._part = micro_batch_size, part
        self._masking = masking

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step."""
        indices = self._sampler.indices(step)
        rows = self._part.rows(len(indices))
        if self._masking is None:
            batch = causal_batch(self._windows.read(indices[rows]))
        else:
            # Masks are drawn for the whole batch.
            batch = take_rows(masked_batch(self._windows.read(indices), self._masking, "train", step), rows)
        return split_batch(batch, self._micro_batch_size)


class HeldOut:
    """Validation batches: always the same windows, with the same masks.

    The whole split where it has no more windows than asked for, otherwise windows from all over it.

    Args:
        windows: the validation split.
        batches: how many batches at most.
        batch_size: sequences of each.
        masking: hides tokens, for the masked objective.
    """

    def __init__(self, windows: TokenWindows, *, batches: int, batch_size: int, masking: Masking | None) -> None:
        self._windows = windows
        self._batches = batches
        self._batch_size = batch_size
        self._masking = masking

    def __iter__(self) -> Iterator[Batch]:
        for number, (tokens, lengths) in enumerate(self._rows()):
            if self._masking is None:
                yield causal_batch(tokens, lengths)
            else:
                yield masked_batch(tokens, self._masking, "validation", number, lengths)

    def _rows(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64] | None]]:
        wanted = self._batches * self._batch_size
        if len(self._windows) <= wanted:
            yield from self._windows.in_order(self._batch_size)
            return
        chosen = np.sort(EpochSampler(len(self._windows), wanted, seed=0).indices(0))
        for part in np.split(chosen, self._batches):
            yield self._windows.read(part), None
