"""What a command and all processes below it take: the peak memory of each, and the processor time of all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PAUSE = 0.05
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Taken:
    """What a command took.

    Args:
        seconds: wall clock.
        processor_seconds: of all processes, as last seen of each.
        peaks: largest resident set of each process, in bytes, largest first.
        output: what it printed.
    """

    seconds: float = 0.0
    processor_seconds: float = 0.0
    peaks: list[int] = field(default_factory=list)
    output: str = ""


class _Tree:
    """A process and those below it, looked at again and again."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._peaks: dict[tuple[int, int], int] = {}
        self._ticks: dict[tuple[int, int], int] = {}

    def look(self) -> None:
        """See what there is."""
        for process in self._below(self._root):
            try:
                stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                status = Path(f"/proc/{process}/status").read_text()
            except OSError:
                continue
            name = (process, int(stat[19]))
            self._ticks[name] = int(stat[11]) + int(stat[12])
            peak = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
            if peak is not None:
                self._peaks[name] = max(self._peaks.get(name, 0), int(peak.split()[1]) * 1024)

    def into(self, taken: Taken) -> None:
        """Sum up."""
        taken.peaks = sorted(self._peaks.values(), reverse=True)
        taken.processor_seconds = sum(self._ticks.values()) / _TICKS

    def _below(self, process: int) -> Iterator[int]:
        yield process
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found = children.read_text().split()
            except OSError:
                continue
            for child in found:
                yield from self._below(int(child))


def watch(command: Sequence[str], environment: Mapping[str, str]) -> Taken:
    """Run a command to its end, its errors and progress going where this process's go.

    A process that is shorter than a twentieth of a second may be missed.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    taken = Taken()
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}) as process:
        tree, ended = _Tree(process.pid), threading.Event()

        def look() -> None:
            while not ended.wait(_PAUSE):
                tree.look()

        watcher = threading.Thread(target=look)
        watcher.start()
        assert process.stdout is not None
        taken.output = process.stdout.read()
        ended.set()
        watcher.join()
        code = process.wait()
    taken.seconds = time.perf_counter() - start
    tree.into(taken)
    if code:
        print(taken.output, file=sys.stderr)
        raise subprocess.CalledProcessError(code, command)
    return taken
