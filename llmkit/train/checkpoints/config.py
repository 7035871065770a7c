"""Settings of checkpoints. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from llmkit.config.base import Config, Finding

DEFAULT_SECONDS = 300.0


class BestConfig(Config):
    """Which checkpoint is the best."""

    metric: str = Field(default="loss", min_length=1)
    """A value of the lines of validation in `metrics.jsonl`."""
    mode: Literal["min", "max"] = "min"
    """Whether less or more of it is better."""


class CheckpointsConfig(Config):
    """When checkpoints are written, where, and which are kept."""

    every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints, besides the one at the end."""
    seconds: float | None = Field(default=None, gt=0)
    """Seconds between checkpoints; by default 300 where `every` is not set. With both, whichever comes first."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    keep_every: int | None = Field(default=None, ge=1)
    """Checkpoints at multiples of so many steps are written and kept for good."""
    keep_best: BestConfig | None = None
    """Write a checkpoint after each evaluation that is better than all before, and keep the best one."""
    directory: str | None = Field(default=None, min_length=1)
    """Where checkpoints go: a path that all ranks see, or an fsspec URL such as `s3://bucket/runs`. Each stage has a
    folder of its own there. By default `checkpoints/` in the stage's own folder."""
    asynchronous: bool = True
    """Copy what is saved and go on training while the copy is written. It takes as much memory as weights and
    optimizer state, divided by the number of ranks."""

    @property
    def interval_seconds(self) -> float | None:
        """Seconds after which a checkpoint is due; None where time does not matter."""
        return DEFAULT_SECONDS if self.seconds is None and self.every is None else self.seconds

    def is_due(self, step: int, seconds: float) -> bool:
        """Whether a checkpoint is to be written after a step, so many seconds after the last one."""
        if any(every is not None and step % every == 0 for every in (self.every, self.keep_every)):
            return True
        return self.interval_seconds is not None and seconds >= self.interval_seconds

    def check(self, steps: int) -> Iterator[Finding]:
        """Numbers that have no effect on a training of so many steps, and places that cannot be opened."""
        for key, value in (("every", self.every), ("keep_every", self.keep_every)):
            if value is not None and value > steps:
                yield Finding(
                    f"{key} {value:,} is more than the {steps:,} steps of the training, and has no effect.",
                    key=f"checkpoints.{key}",
                    hint="Lower it; a checkpoint at the end is written anyway.",
                    severity="warning",
                )
        if self.directory is not None and "://" in self.directory:
            yield from _check_url(self.directory)


def _check_url(url: str) -> Iterator[Finding]:
    from fsspec import get_filesystem_class

    protocol = url.split("://", 1)[0].rsplit("::", 1)[-1]
    try:
        get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        yield Finding(
            f"`{url}` cannot be opened: {error}.",
            key="checkpoints.directory",
            hint="Install the fsspec package for it, such as s3fs for s3:// or gcsfs for gs://.",
        )
