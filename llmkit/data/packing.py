"""Which sequences go into one row together."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray


def best_fit(lengths: NDArray[np.int64], capacity: int) -> list[NDArray[np.int64]]:
    """Sequences in rows of at most `capacity` tokens, none cut, by best fit decreasing.

    The longest come first, each into the row that it fills up most, or into a new one. That takes at most 11/9 of the
    fewest rows possible, and two thirds of a row (Johnson 1974; for packing of text, Ding et al. 2024, "Fewer
    Truncations Improve Language Modeling").

    Args:
        lengths: tokens of each sequence, [n].
        capacity: tokens of a row; longer sequences get a row each.

    Returns:
        the sequences of each row, in rising order; rows in the order in which they were begun.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for sequence in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[sequence])
        # Among equal ones the row begun first.
        place = bisect_left(room, (length, -1))
        if place == len(room):
            rows.append([sequence])
            insort(room, (capacity - length, len(rows) - 1))
        else:
            left, row = room.pop(place)
            rows[row].append(sequence)
            insort(room, (left - length, row))
    return [np.array(sorted(row), dtype=np.int64) for row in rows]


def divisible(rows: list[NDArray[np.int64]], lengths: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """The rows, so many that `count` divides their number: the longest are halved, or the shortest put together.

    Args:
        rows: sequences of each row.
        lengths: tokens of each sequence.
        count: at most the number of sequences.
    """
    rows = list(rows)
    wanted = -(-len(rows) // count) * count
    if wanted > sum(len(row) for row in rows):
        wanted -= count
    while len(rows) > wanted:
        rows.sort(key=lambda row: int(lengths[row].sum()))
        rows = [np.sort(np.concatenate(rows[:2])), *rows[2:]]
    while len(rows) < wanted:
        longest = max((row for row in rows if len(row) > 1), key=lambda row: int(lengths[row].sum()))
        rows = [row for row in rows if row is not longest] + [longest[0::2], longest[1::2]]
    return sorted(rows, key=lambda row: -int(lengths[row].sum()))
