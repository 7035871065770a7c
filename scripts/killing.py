"""What the scripts that kill share: commands that are started, signalled and compared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from llmkit.config.experiment import Experiment
from llmkit.errors import LLMKitError
from llmkit.pipeline.run import load_experiment
from llmkit.store.artifact import open_artifact


class Process(Protocol):
    """What a command runs in."""

    @property
    def pid(self) -> int:
        """Its number, which is that of its process group too."""

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative the signal that it was killed by; None as long as it is not known to have ended."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal to it alone."""


@dataclass(frozen=True)
class Command:
    """A command of llmkit on a config.

    Args:
        config: the YAML file.
        overrides: values of `--set`.
        environment: of the process; that of this one by default.
        python: the interpreter and its arguments up to the command's name.
        name: of the command.
    """

    config: Path
    overrides: Sequence[str] = ()
    environment: Mapping[str, str] | None = None
    python: Sequence[str] = field(default=(sys.executable, "-m", "llmkit"))
    name: str = "run"

    def experiment(self) -> Experiment:
        """The config, read and checked."""
        return load_experiment(self.config, self.overrides)

    def arguments(self, overrides: Sequence[str]) -> list[str]:
        """The command's name and arguments."""
        settings = [part for override in (*self.overrides, *overrides) for part in ("--set", override)]
        return [self.name, "--config", str(self.config), *settings]

    def start(self, log: Path, overrides: Sequence[str]) -> Process:
        """Start it, with a process group of its own; what it says is appended to the log."""
        command = [*self.python, *self.arguments(overrides)]
        with log.open("ab") as stream:
            return subprocess.Popen(command, stdout=stream, stderr=stream, env=self.environment, start_new_session=True)

    @contextmanager
    def started(self, log: Path, *overrides: str) -> Iterator[Process]:
        """The process; on leaving all of its group is killed that still runs."""
        process = self.start(log, overrides)
        try:
            yield process
        finally:
            signal_all(process, signal.SIGKILL)
            process.wait()

    def finish(self, log: Path, *overrides: str) -> None:
        """Run it to its end.

        Raises:
            LLMKitError: it fails.
        """
        with self.started(log, *overrides) as process:
            if process.wait() != 0:
                raise LLMKitError(f"`llmkit {self.name}` ends with exit code {process.returncode}.", where=str(log))


def signal_all(process: Process, number: signal.Signals) -> None:
    """Send a signal to a process started by a `Command` and to all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def ranks_of(process: Process) -> list[int]:
    """The processes that torchrun has started, by process number."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == process.pid:
                    found.append(int(entry.name))
    return sorted(found)


def unfinished(place: Path) -> Path | None:
    """The folder in which a stage is being made."""
    return next(iter(place.parent.glob(f"{place.name}.partial-*")), None)


def different_files(alone: Path, killed: Path) -> tuple[int, list[str]]:
    """Compare the files that make up a stage's result, once both are found to be as their manifests say.

    Returns:
        their number, and the names of those that differ or are in one only.
    """
    ours, theirs = (
        {entry.path: entry.sha256 for entry in open_artifact(place, verify=True).manifest.files if entry.content}
        for place in (alone, killed)
    )
    names = sorted(ours.keys() | theirs.keys())
    return len(names), [name for name in names if ours.get(name) != theirs.get(name)]
