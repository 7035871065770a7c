"""Batches of sequences of similar length: which examples, in which order, is a function of seed and step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmkit.data.packing import best_fit, divisible
from llmkit.data.sampling import KeyedPermutation
from llmkit.errors import DataError
from llmkit.train.contract import WHOLE, Part, StatelessSource

BATCHES_SORTED_TOGETHER = 32
"""Batches whose examples are drawn together and then divided by length."""

Indices = NDArray[np.int64]
Batch = TypeVar("Batch")


class BucketedBatches(StatelessSource, Generic[Batch]):
    """The micro-batches of each optimizer step.

    An epoch is a keyed permutation of the examples, so each comes up once in it. It is cut into groups of 32 batches;
    the examples of a group are sorted by length and divided into its batches, so that little is padded; and the batches
    of the epoch come in a shuffled order. Where `batch_size` does not divide the number of examples, the batches are
    made smaller evenly, so that no step rests on a few left over.

    Args:
        lengths: tokens of each example, [n], n > 0.
        collate: makes a micro-batch of examples, given their indices.
        batch_size: examples of a step, at most.
        micro_batch_size: examples of a micro-batch, at most.
        seed: chooses the permutations.
        capacity: tokens of a micro-batch at most, for examples that are put behind one another: those of a step go into
            as few micro-batches as best fit finds; None for micro-batches of so many examples.
        part: this rank's examples of each batch: every so many-th, so that all ranks have like lengths. Where a batch
            cannot be divided evenly, a micro-batch may have one example more than `micro_batch_size`.

    Raises:
        DataError: there are fewer examples in a batch than ranks.
    """

    def __init__(
        self,
        lengths: Indices,
        collate: Callable[[Indices], Batch],
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        capacity: int | None = None,
        part: Part = WHOLE,
    ) -> None:
        self._capacity = capacity
        self._lengths = lengths
        self._collate = collate
        self._micro, self._part = micro_batch_size, part
        self._seed = seed
        self.steps_per_epoch = -(-len(lengths) // batch_size)
        """Optimizer steps of an epoch."""
        if len(lengths) // self.steps_per_epoch < part.count:
            raise DataError(
                f"{len(lengths):,} examples in batches of {batch_size:,} are too few for {part.count} ranks.",
                hint="Start fewer, or make the batches larger.",
            )
        self._epoch = -1
        self._order: list[Indices] = []

    def indices(self, step: int) -> Indices:
        """The examples of a step, shortest first."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._arrange(epoch)
        return self._order[position]

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step."""
        indices = self.indices(step)
        if self._capacity is not None:
            lengths = self._lengths[indices]
            rows = divisible(best_fit(lengths, self._capacity), lengths, self._part.count)
            return [self._collate(indices[row]) for row in rows[self._part.index :: self._part.count]]
        if self._part.count == 1:
            return [self._collate(rows) for rows in parts(indices, self._micro)]
        # As many on every rank.
        cuts = -(-self._part.smallest(len(indices)) // self._micro)
        mine = indices[self._part.index :: self._part.count]
        return [self._collate(rows) for rows in np.array_split(mine, cuts)]

    def _arrange(self, epoch: int) -> list[Indices]:
        count, steps = len(self._lengths), self.steps_per_epoch
        order = KeyedPermutation(count, f"finetune/{self._seed}/{epoch}")(np.arange(count))
        bounds = [count * batch // steps for batch in range(steps + 1)]
        batches = []
        for first in range(0, steps, BATCHES_SORTED_TOGETHER):
            last = min(first + BATCHES_SORTED_TOGETHER, steps)
            group = order[bounds[first] : bounds[last]]
            group = group[np.argsort(self._lengths[group], kind="stable")]
            for batch in range(first, last):
                batches.append(group[bounds[batch] - bounds[first] : bounds[batch + 1] - bounds[first]])
        shuffled = KeyedPermutation(steps, f"finetune/{self._seed}/{epoch}/batches")(np.arange(steps))
        return [batches[batch] for batch in shuffled]


def parts(indices: Indices, size: int) -> Iterator[Indices]:
    """Runs of at most `size` indices."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def evaluation_indices(lengths: Indices, *, batch_size: int, batches: int | None) -> list[Indices]:
    """The same examples at every evaluation: all, or a fixed random choice of `batches` batches, sorted by length."""
    count = len(lengths)
    chosen = KeyedPermutation(count, "finetune/validation")(np.arange(count)) if count else np.arange(0)
    if batches is not None:
        chosen = chosen[: batches * batch_size]
    chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
    return list(parts(chosen, batch_size))


def pad(sequences: Sequence[NDArray[np.integer[Any]]], value: int) -> tuple[Indices, Indices]:
    """Sequences as one array, padded on the right to the longest.

    Returns:
        ids [B, L], and a mask [B, L] that is 1 on the sequences and 0 on the padding.
    """
    longest = max(map(len, sequences))
    ids = np.full((len(sequences), longest), value, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return ids, mask
