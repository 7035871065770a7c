"""Loss spikes and gradients that are not finite: leave the update out, then go back and pass over the data, then stop.

What is decided depends on losses and gradient norms alone, which are the same on all ranks, so all decide the same. The
history that a step is compared with goes into every checkpoint. What a rewind passes over must outlive the checkpoint
that it goes back to: it is written to `skips.jsonl` in the stage's directory first. Steps before the first one passed
over are the same in both attempts, so it does not matter which of their checkpoints training goes back to, nor whether
it was killed on the way: weights are a function of settings, seed and data still.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llmkit.store.files import write_text_atomic
from llmkit.train.config import SPIKE_WINDOW, SpikesConfig

FILE = "skips.jsonl"
_SMALLEST_SCALE = 0.02
_NORMAL_CONSISTENCY = 1.4826


@dataclass(frozen=True)
class Verdict:
    """What is to be done about a step.

    Args:
        action: update the weights, leave the update out, go back and pass over data, or stop.
        reason: what is wrong with the step, for messages; empty where nothing is.
        first: with "rewind", the first step to be passed over; the last one is the step judged.
    """

    action: Literal["update", "skip", "rewind", "stop"]
    reason: str = ""
    first: int = 0


@dataclass(frozen=True)
class Passage:
    """Steps that a rewind passes over.

    Args:
        first: counted from 0.
        last: included.
        reason: what was wrong with the last one.
    """

    first: int
    last: int
    reason: str


class RewindError(Exception):
    """Training has to go back to a checkpoint from before the steps of `passage`; it is recorded already."""

    def __init__(self, passage: Passage) -> None:
        super().__init__(passage.reason)
        self.passage = passage


class Guard:
    """Judges each step by its loss and its gradient norm.

    Args:
        config: settings.
        directory: the stage's, with what earlier rewinds pass over.
        writes: whether this rank is the one that writes there.

    Attributes:
        skipped: updates left out so far.
    """

    def __init__(self, config: SpikesConfig, directory: Path, *, writes: bool = True) -> None:
        self._config, self._path, self._writes = config, directory / FILE, writes
        self._histories: dict[str, list[float]] = {"loss": [], "gradient norm": []}
        self._bad: list[int] = []
        self._streak = 0
        self.skipped = 0
        self._passages = [Passage(**json.loads(line)) for line in _lines(self._path)]

    @property
    def rewinds(self) -> int:
        """How often training went back."""
        return len(self._passages)

    def passes_over(self, step: int) -> bool:
        """Whether a step's data is not learned from."""
        return any(passage.first <= step <= passage.last for passage in self._passages)

    def passed_over(self, done: int) -> int:
        """How many of the first `done` steps are passed over."""
        return len({step for found in self._passages for step in range(found.first, min(found.last + 1, done))})

    def judge(self, step: int, loss: float, norm: float) -> Verdict:
        """Compare a step with those before it.

        Args:
            step: counted from 0.
            loss: mean over the step's units.
            norm: of the whole gradient, before clipping.
        """
        values = {"loss": loss, "gradient norm": norm}
        finite = all(math.isfinite(value) for value in values.values())
        reason = next(filter(None, map(self._complaint, values, values.values())), "")
        if finite:
            # Spikes count as well: the median bears them, and a level that has changed for good is learned.
            for name, value in values.items():
                self._histories[name] = [*self._histories[name][1 - SPIKE_WINDOW :], value]
        if not reason:
            self._streak = 0
            return Verdict("update")
        self._streak += 1
        self._bad = [*(before for before in self._bad if before > step - SPIKE_WINDOW), step]
        in_a_row, within = self._streak > self._config.skips, len(self._bad) > self._config.skips_per_hundred
        if not (in_a_row or within):
            self.skipped += 1
            return Verdict("skip", reason)
        if self.rewinds >= self._config.rewinds:
            return Verdict("stop", reason)
        first = self._bad[-self._streak] if in_a_row else self._bad[0]
        return Verdict("rewind", reason, max(0, first - self._config.lookback))

    def _complaint(self, name: str, value: float) -> str:
        if not math.isfinite(value):
            return f"{name} {value:.4g} is not finite"
        history, threshold = self._histories[name], self._config.threshold
        if threshold is None or len(history) < self._config.history:
            return ""
        median, scale = _spread(history)
        if value <= median + threshold * scale:
            return ""
        times = (value - median) / scale
        return f"{name} {value:.4g} is {times:.3g} deviations above the running median {median:.4g}"

    def record(self, passage: Passage) -> None:
        """Write down, durably, what is passed over from now on."""
        self._passages.append(passage)
        if self._writes:
            write_text_atomic(self._path, "".join(json.dumps(asdict(found)) + "\n" for found in self._passages))

    def belongs(self, step: int, state: Mapping[str, Any]) -> bool:
        """Whether a checkpoint was made by the attempt that is going on, or before it parted from those given up.

        Args:
            step: steps done.
            state: of the guard, in the checkpoint.
        """
        return all(step <= found.first for found in self._passages[state["rewinds"] :])

    def state_dict(self) -> dict[str, Any]:
        """What judging the steps to come depends on, as JSON values."""
        return {
            "histories": self._histories,
            "bad": self._bad,
            "streak": self._streak,
            "skipped": self.skipped,
            "rewinds": self.rewinds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; what is passed over stays."""
        self._histories = {name: list(values) for name, values in state["histories"].items()}
        self._bad, self._streak, self.skipped = list(state["bad"]), state["streak"], state["skipped"]

    def attempts(self) -> str:
        """What was tried before giving up, as the end of a sentence; empty where nothing was."""
        tried = []
        if len(self._bad) > 1:
            tried.append(f"{len(self._bad) - 1} bad steps before it were left out")
        if self.rewinds:
            tried.append(f"training went back {self.rewinds} times")
        return f"; {' and '.join(tried)}" if tried else ""

    def report(self, done: int) -> dict[str, int]:
        """Counts for metrics and summary after `done` steps; those that are 0 are left out."""
        rewinds = sum(passage.first < done for passage in self._passages)
        counts = {"skipped_steps": self.skipped, "passed_over_steps": self.passed_over(done), "rewinds": rewinds}
        return {name: count for name, count in counts.items() if count}


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Median, and the standard deviation that the median absolute deviation from it stands for under a normal
    distribution (Hampel, 1974), at least a fiftieth of the median, so that noise about a constant is no spike."""
    median = statistics.median(values)
    deviation = statistics.median(abs(value - median) for value in values)
    return median, max(_NORMAL_CONSISTENCY * deviation, _SMALLEST_SCALE * abs(median), 1e-12)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
