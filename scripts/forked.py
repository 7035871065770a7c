"""Commands in processes forked from one that has imported torch already: a start takes tenths of a second.

This process must have imported what they need, and have computed nothing: threads do not survive a fork.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from killing import Command, Process
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from llmkit.cli.main import app


class Forked:
    """A process forked from this one, with a process group of its own.

    Args:
        work: what it does. It ends with the exit code of a SystemExit, 0 without one, and 1 after any other error.
        log: what it says is appended here.
    """

    def __init__(self, work: Callable[[], object], log: Path) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._be(work, log)
        # Both set it, so that it is set when either goes on.
        with suppress(OSError):
            os.setpgid(self.pid, self.pid)

    def _be(self, work: Callable[[], object], log: Path) -> NoReturn:
        code = 1
        try:
            os.setpgid(0, 0)
            stream = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            work()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """Its exit code, negative the signal that it was killed by; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not, within so many seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("forked", timeout or 0.0)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to it alone."""
        os.kill(self.pid, number)


@dataclass(frozen=True)
class ForkedCommand(Command):
    """A command that runs in processes forked from this one.

    Args:
        ranks: processes that torchrun's agent starts; 1: it is left out.
        threads: of each process; None for as many as torch takes. A small model is no faster on more than one, and
            much slower on a machine that has other work.
    """

    ranks: int = 1
    threads: int | None = 1

    def start(self, log: Path, overrides: Sequence[str]) -> Process:
        """Start it, with a process group of its own; what it says is appended to the log."""
        arguments = self.arguments(overrides)
        if self.ranks == 1:
            return Forked(lambda: _command_line(self.threads, arguments), log)
        return Forked(lambda: _torchrun(self.ranks, self.threads, log.parent, arguments), log)


def _command_line(threads: int | None, arguments: list[str]) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    app(arguments)


def _torchrun(ranks: int, threads: int | None, logs: Path, arguments: list[str]) -> None:
    """What `torchrun --standalone --nproc-per-node N -m llmkit ...` does, with forked ranks."""
    # Where torch leaves what killed ranks had open.
    tempfile.tempdir = str(logs)
    # One run's name and an endpoint with port 0 are what --standalone sets.
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, run_id=str(os.getpid()), rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, start_method="fork",
        logs_specs=DefaultLogsSpecs(log_dir=str(logs)),
    )  # fmt: skip
    elastic_launch(config, _command_line)(threads, arguments)
