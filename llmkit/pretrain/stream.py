"""The batches that a training reads: windows of one or several sources, by phases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.data.loader import EpochSampler, TokenWindows
from llmkit.data.sampling import KeyedPermutation
from llmkit.pretrain.batches import Batch, causal_batch, masked_batch, split_batch, take_rows
from llmkit.pretrain.course import Course
from llmkit.pretrain.masking import Masking
from llmkit.pretrain.mixture import Mixture
from llmkit.train.contract import WHOLE, Part, StatelessSource
from llmkit.train.seeding import derive_seed


class Rows(NamedTuple):
    """Where sequences are read.

    Args:
        sources: number of each one's source, [n].
        starts: where each begins in its source's stream, [n].
    """

    sources: NDArray[np.int64]
    starts: NDArray[np.int64]


class TrainingStream(StatelessSource):
    """Training batches. A pure function of seed and step, found without the steps before it.

    Every epoch of a source is a shuffle of all its full windows. A window has the longest length of any phase; phases
    of a shorter one cut windows into pieces: first of all windows of the phase the first piece, then the second, and
    so on, so that no token comes twice in an epoch.

    Args:
        windows: the training split of each source, of the longest length.
        course: batch sizes and lengths.
        mixture: of the sources.
        micro_batch_size: sequences of a micro-batch.
        seed: seed of the stage.
        masking: hides tokens, for the masked objective.
        apart: whether documents are kept apart.
        part: this rank's rows of each batch.
    """

    def __init__(
        self,
        windows: Sequence[TokenWindows],
        course: Course,
        mixture: Mixture,
        *,
        micro_batch_size: int,
        seed: int,
        masking: Masking | None,
        apart: bool,
        part: Part = WHOLE,
    ) -> None:
        self._windows, self._course, self._mixture = windows, course, mixture
        self._micro_batch_size, self._part = micro_batch_size, part
        self._seed, self._masking, self._apart = seed, masking, apart
        self._samplers = [
            EpochSampler(len(each), 1, derive_seed(seed, "source", number) if number else seed)
            for number, each in enumerate(windows)
        ]
        self._first_rows, self._first_windows, self._used_windows = self._by_phase()

    def _by_phase(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """For each phase and source: its sequences before, its windows before, and its windows within, [phases, S]."""
        stretches = self._course.stretches
        bounds = [*(stretch.rows_before for stretch in stretches), self._course.rows]
        rows = np.array([self._mixture.counts(bound) for bound in bounds])
        pieces = np.array([[each.pieces(stretch.length) for each in self._windows] for stretch in stretches])
        used = -(-np.diff(rows, axis=0) // pieces)
        return rows[:-1], np.cumsum(used, axis=0) - used, used

    def rows(self, step: int) -> Rows:
        """Where the sequences of a step are read."""
        stretch = self._course.at(step)
        phase = self._course.stretches.index(stretch)
        first = self._course.rows_before(step)
        before, after = self._mixture.counts(first), self._mixture.counts(first + stretch.batch_size)
        sources, starts = [], []
        for source, windows in enumerate(self._windows):
            numbers = np.arange(before[source], after[source]) - self._first_rows[phase, source]
            used = max(1, int(self._used_windows[phase, source]))
            chosen = self._samplers[source].at(self._first_windows[phase, source] + numbers % used)
            starts.append(windows.starts(chosen, numbers // used, stretch.length))
            sources.append(np.full(len(numbers), source, dtype=np.int64))
        found = Rows(np.concatenate(sources), np.concatenate(starts))
        if len(self._windows) == 1:
            return found
        # So that micro-batches and ranks have something of each.
        order = KeyedPermutation(stretch.batch_size, f"{self._seed}/{step}/order")(np.arange(stretch.batch_size))
        return Rows(found.sources[order], found.starts[order])

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step."""
        rows, length = self.rows(step), self._course.at(step).length
        mine = self._part.rows(len(rows.starts))
        if self._masking is None:
            batch = self._batch(Rows(rows.sources[mine], rows.starts[mine]), length, step)
        else:
            # Masks are drawn for the whole batch.
            batch = take_rows(self._batch(rows, length, step), mine)
        return split_batch(batch, self._micro_batch_size)

    def _batch(self, rows: Rows, length: int, step: int) -> Batch:
        tokens = np.empty((len(rows.starts), length + (self._masking is None)), dtype=np.int64)
        numbers, places = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for source, windows in enumerate(self._windows):
            here = np.flatnonzero(rows.sources == source)
            tokens[here] = windows.read_at(rows.starts[here], length)
            if self._apart:
                inside, place = windows.borders(rows.starts[here], length)
                numbers.append(here[inside])
                places.append(place)
        borders = (np.concatenate(numbers), np.concatenate(places)) if self._apart else None
        if self._masking is None:
            batch = causal_batch(tokens, None, borders)
        else:
            progress = self._course.progress(step)
            batch = masked_batch(tokens, self._masking, "train", step, None, borders, progress)
        return batch if len(self._windows) == 1 else batch._replace(sources=torch.from_numpy(rows.sources))

    def counts(self) -> NDArray[np.int64]:
        """Sequences of each source in the whole training, [S]."""
        return self._mixture.counts(self._course.rows)

    def epochs(self) -> NDArray[np.float64]:
        """How often each source is gone through in the whole training, [S]."""
        used = (self._first_windows[-1] + self._used_windows[-1]) * self._course.longest
        return np.asarray(used / np.array([each.targets for each in self._windows]))
