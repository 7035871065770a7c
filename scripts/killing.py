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

from llmkit.config.experiment import Experiment
from llmkit.errors import LLMKitError
from llmkit.pipeline.run import load_experiment
from llmkit.store.artifact import open_artifact


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

    @contextmanager
    def started(self, log: Path, *overrides: str) -> Iterator[subprocess.Popen[bytes]]:
        """The process, with a process group of its own; on leaving all of the group is killed that still runs.

        What it says is appended to the log.
        """
        settings = [part for override in (*self.overrides, *overrides) for part in ("--set", override)]
        command = [*self.python, self.name, "--config", str(self.config), *settings]
        with (
            log.open("ab") as stream,
            subprocess.Popen(
                command, stdout=stream, stderr=stream, env=self.environment, start_new_session=True
            ) as process,
        ):
            try:
                yield process
            finally:
                signal_all(process, signal.SIGKILL)

    def finish(self, log: Path, *overrides: str) -> None:
        """Run it to its end.

        Raises:
            LLMKitError: it fails.
        """
        with self.started(log, *overrides) as process:
            if process.wait() != 0:
                raise LLMKitError(f"`llmkit {self.name}` ends with exit code {process.returncode}.", where=str(log))


def signal_all(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process started by a `Command` and to all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def ranks_of(process: subprocess.Popen[bytes]) -> list[int]:
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
