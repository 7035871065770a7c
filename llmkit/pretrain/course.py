"""What each step of pretraining is made of: how many sequences, and how long. No torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """Steps of one batch size and one length.

    Args:
        batch_size: sequences of a step.
        length: tokens of a sequence.
        steps: how many steps; None where `tokens` says it.
        tokens: as many steps as it takes to see at least so many.
    """

    batch_size: int
    length: int
    steps: int | None = None
    tokens: int | None = None

    @property
    def duration(self) -> int:
        """Its steps."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return -(-self.tokens // (self.batch_size * self.length))


@dataclass(frozen=True)
class Stretch:
    """A phase in its place.

    Args:
        first: its first step, from 0.
        batch_size: sequences of a step.
        length: tokens of a sequence.
        rows_before: sequences of all steps before it.
        tokens_before: tokens of all steps before it.
    """

    first: int
    batch_size: int
    length: int
    rows_before: int
    tokens_before: int


class Course:
    """The phases of a training, one after another; everything here is known of any step without the ones before it.

    Args:
        phases: the last of them lasts to the end, whatever it says; phases that would begin after it are left out.
        steps: of the whole training.
    """

    def __init__(self, phases: Sequence[Phase], steps: int) -> None:
        self.steps = steps
        self.stretches: list[Stretch] = []
        step = rows = tokens = 0
        for number, phase in enumerate(phases):
            if step >= steps:
                break
            self.stretches.append(Stretch(step, phase.batch_size, phase.length, rows, tokens))
            duration = steps - step if number == len(phases) - 1 else min(phase.duration, steps - step)
            step += duration
            rows += duration * phase.batch_size
            tokens += duration * phase.batch_size * phase.length
        self.rows = rows
        """Sequences of the whole training."""
        self.tokens = tokens
        """Tokens of the whole training."""
        self._firsts = [stretch.first for stretch in self.stretches]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequences."""
        return max(stretch.length for stretch in self.stretches)

    def at(self, step: int) -> Stretch:
        """The phase that a step is in; behind the last step, the last one."""
        return self.stretches[bisect_right(self._firsts, step) - 1]

    def rows_before(self, step: int) -> int:
        """Sequences of the steps before this one."""
        stretch = self.at(step)
        return stretch.rows_before + (step - stretch.first) * stretch.batch_size

    def tokens_before(self, step: int) -> int:
        """Tokens of the steps before this one."""
        stretch = self.at(step)
        return stretch.tokens_before + (step - stretch.first) * stretch.batch_size * stretch.length

    def progress(self, step: int) -> float:
        """Part of all tokens that the steps before this one have seen."""
        return self.tokens_before(step) / self.tokens
