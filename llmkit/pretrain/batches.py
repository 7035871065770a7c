"""Windows of tokens as batches to predict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmkit.data.loader import EpochSampler, TokenWindows
from llmkit.model.documents import Documents, documents_of
from llmkit.pretrain.masking import Masking

Borders = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Where documents begin inside rows of tokens: numbers of the rows, and places in them."""


class Batch(NamedTuple):
    """Sequences, and what is to be predicted at which of their positions.

    Args:
        input_ids: int64 [B, L].
        targets: int64 [N].
        positions: int64 [N], each target's place in the flattened [B * L]; None where every position has a target.
        attention_mask: bool [B, L], False at padding; None where there is none.
        documents: the documents in the rows, where they are kept apart and some row has several.
        sources: int64 [B], the number of each row's source, where there are several.
    """

    input_ids: Tensor
    targets: Tensor
    positions: Tensor | None = None
    attention_mask: Tensor | None = None
    documents: Documents | None = None
    sources: Tensor | None = None


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on a device."""
    return Batch(*(None if part is None else part.to(device, non_blocking=True) for part in batch))  # type: ignore[arg-type]


def causal_batch(
    tokens: NDArray[np.int64], lengths: NDArray[np.int64] | None = None, borders: Borders | None = None
) -> Batch:
    """Each position predicts the token after it.

    Args:
        tokens: [B, L + 1].
        lengths: inputs of each row that are no padding, [B]; all by default.
        borders: where documents begin that are to be kept apart; their first tokens are no targets.
    """
    ids = torch.from_numpy(tokens)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].flatten()
    rows, length = inputs.shape
    whole = lengths is None or bool((lengths == length).all())
    if whole and (borders is None or not len(borders[0])):
        return Batch(inputs, targets)
    # Causal: what stands before the padding does not see it.
    predicted = torch.ones_like(inputs, dtype=torch.bool) if lengths is None else _real(inputs, lengths)
    documents = None
    if borders is not None:
        predicted[borders[0], borders[1] - 1] = False
        documents = documents_of(rows, length, _starts(borders, rows, length, lengths))
    places = predicted.flatten().nonzero()[:, 0]
    return Batch(inputs, targets[places], places, documents=documents)


def masked_batch(
    tokens: NDArray[np.int64],
    masking: Masking,
    purpose: str,
    step: int,
    lengths: NDArray[np.int64] | None = None,
    borders: Borders | None = None,
    progress: float = 1.0,
) -> Batch:
    """Hidden tokens are predicted where they stand.

    Args:
        tokens: [B, L].
        masking: hides tokens.
        purpose: what the masks are for.
        step: number of the batch.
        lengths: tokens of each row that are no padding, [B]; all by default.
        borders: where documents begin that are to be kept apart.
        progress: part of the training that is done.
    """
    ids = torch.from_numpy(tokens)
    masked = masking.hide(ids, purpose, step, progress)
    chosen, attention_mask, documents = masked.chosen, None, None
    if lengths is not None and not (lengths == ids.shape[1]).all():
        attention_mask = _real(ids, lengths)
        chosen = chosen & attention_mask
    if borders is not None:
        documents = documents_of(len(tokens), tokens.shape[1], _starts(borders, len(tokens), tokens.shape[1], lengths))
    positions = chosen.flatten().nonzero()[:, 0]
    return Batch(masked.input_ids, ids.flatten()[positions], positions, attention_mask, documents)


def _real(ids: Tensor, lengths: NDArray[np.int64]) -> Tensor:
    return torch.arange(ids.shape[1]) < torch.from_numpy(lengths)[:, None]


def _starts(borders: Borders, rows: int, length: int, lengths: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Where documents and padding begin among all tokens."""
    inside = borders[1] < length
    starts: NDArray[np.int64] = borders[0][inside] * length + borders[1][inside]
    if lengths is None:
        return starts
    padded = np.flatnonzero(lengths < length)
    return np.concatenate([starts, padded * length + lengths[padded]])


def take_rows(batch: Batch, rows: slice) -> Batch:
    """Some sequences of a batch without padding."""
    length = batch.input_ids.shape[1]
    begin, end = rows.start * length, rows.stop * length
    inputs = batch.input_ids[rows]
    targets, positions, documents = batch.targets, batch.positions, batch.documents
    if positions is None:
        targets = targets[begin:end]
    else:
        inside = (positions >= begin) & (positions < end)
        targets, positions = targets[inside], positions[inside] - begin
    if documents is not None:
        documents = documents_of(len(inputs), length, documents.borders(begin, end))
    sources = None if batch.sources is None else batch.sources[rows]
    return Batch(inputs, targets, positions, None, documents, sources)


def split_batch(batch: Batch, rows: int) -> list[Batch]:
    """A batch without padding as micro-batches of `rows` sequences."""
    count = len(batch.input_ids)
    if rows >= count:
        return [batch]
    return [take_rows(batch, slice(begin, min(begin + rows, count))) for begin in range(0, count, rows)]


class HeldOut:
    """Validation batches: always the same windows, with the same masks.

    The whole split where it has no more windows than asked for, otherwise windows from all over it.

    Args:
        windows: the validation split.
        batches: how many batches at most.
        batch_size: sequences of each.
        masking: hides tokens, for the masked objective.
        apart: whether documents are kept apart.
    """

    def __init__(
        self, windows: TokenWindows, *, batches: int, batch_size: int, masking: Masking | None, apart: bool
    ) -> None:
        self._apart = apart
        self._windows = windows
        self._batches = batches
        self._batch_size = batch_size
        self._masking = masking

    def __iter__(self) -> Iterator[Batch]:
        length = self._windows.length
        for number, (indices, tokens, lengths) in enumerate(self._rows()):
            starts = self._windows.starts(indices, np.zeros_like(indices), length)
            borders = self._windows.borders(starts, length) if self._apart else None
            if self._masking is None:
                yield causal_batch(tokens, lengths, borders)
            else:
                yield masked_batch(tokens, self._masking, "validation", number, lengths, borders)

    def _rows(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]]:
        wanted = self._batches * self._batch_size
        if len(self._windows) <= wanted:
            first = 0
            for tokens, lengths in self._windows.in_order(self._batch_size):
                yield np.arange(first, first + len(tokens)), tokens, lengths
                first += len(tokens)
            return
        chosen = np.sort(EpochSampler(len(self._windows), wanted, seed=0).indices(0))
        for part in np.split(chosen, self._batches):
            yield part, self._windows.read(part), None
