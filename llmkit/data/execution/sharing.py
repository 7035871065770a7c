"""Processes that a job scheduler has started to share the tasks of a stage: they meet in the folder of the work alone.

Each does the tasks that fall to it and waits for the results of the others. It shows that it is alive by a file that
keeps changing. Of one that never begins, fails or falls silent, the others do the tasks; since the first result of a
task stays and all of them are equal, it does no harm if it was only slow.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from llmkit.console import say
from llmkit.data.execution.cache import Cache
from llmkit.data.execution.engine import Executor
from llmkit.data.execution.tasks import Task
from llmkit.errors import DataError
from llmkit.store.files import canonical_json, sha256_json

SILENCE = 90.0
"""Seconds without a sign after which one counts as gone; shared folders may show changes a minute late."""
BEAT = 2.0
"""Seconds from one sign to the next."""
_SHORTEST_NAP, _LONGEST_NAP = 0.02, 2.0
_TAKEN = 4
"""Tasks of one that is gone that are done before looking whether others have done the rest."""
_FOLDER = "shards"


@dataclass
class _Peer:
    """What is seen of another one: its last words, and when they changed."""

    changed: float
    said: dict[str, Any] = field(default_factory=dict)
    seen: bool = False

    @property
    def name(self) -> str:
        return f"process {self.said['process']} on {self.said['host']}" if self.seen else "not seen yet"


class WorkIsOverError(Exception):
    """The first one has all results and has begun to remove what nobody needs: there is nothing left to do."""


class Share:
    """The part of one process in the tasks of a stage; a context manager that shows whether it is alive.

    Args:
        number: of this process, from 1.
        count: how many share the tasks.
        folder: of the work, which all of them see.
        name: of the stage.
    """

    def __init__(self, number: int, count: int, folder: Path, name: str) -> None:
        self.number, self.count = number, count
        self._folder = folder / _FOLDER / name
        now = time.monotonic()
        self._peers = {peer: _Peer(now) for peer in range(1, count + 1) if peer != number}
        self._phases: list[str] = []
        self._told: set[int] = set()
        self._beats = 0
        self._over = False
        self._state = "works"
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        for peer, found in self._peers.items():
            # What an earlier run has left is no sign of life.
            found.said = self._read(peer)
        self._show()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._state = "done" if kind is None else "failed"
        self._show()

    def execute(self, executor: Executor, tasks: Sequence[Task], cache: Cache) -> Iterator[Task]:
        """Do one's own part of tasks, and give each that was not done before when its result is there.

        Args:
            executor: does what falls to this process.
            tasks: all tasks of a phase, the same ones in the same order in every process.
            cache: where the results are.

        Raises:
            DataError: another one is about to do something else.
            WorkIsOverError: the first one has all results.
        """
        self._phases.append(sha256_json([task.key for task in tasks]))
        self._show()
        owners = {task.key: index % self.count + 1 for index, task in enumerate(tasks)}
        waiting = {task.key: task for task in tasks if cache.get(task.key) is None}
        nap = _SHORTEST_NAP
        for task in executor.execute([task for task in waiting.values() if owners[task.key] == self.number], cache):
            yield waiting.pop(task.key)
        while waiting:
            come = [task for key, task in waiting.items() if cache.get(key) is not None]
            for task in come:
                yield waiting.pop(task.key)
            self._look()
            left = [task for task in waiting.values() if self._is_gone(owners[task.key])]
            # Several may be waiting: each begins at another place.
            first = len(left) * (self.number - 1) // self.count
            for task in executor.execute([*left[first:], *left[:first]][:_TAKEN], cache) if left else ():
                yield waiting.pop(task.key)
            nap = _SHORTEST_NAP if come or left else min(2 * nap, _LONGEST_NAP)
            if waiting and not left:
                time.sleep(nap)

    def wait_for_others(self) -> None:
        """Return when none of those that were seen alive reads results any more."""
        nap = _SHORTEST_NAP
        while True:
            self._look()
            # One that was started again may have shown nothing yet but what its killed self has left.
            there = (number for number, peer in self._peers.items() if peer.said.get("state") == "works")
            if all(self._is_gone(number) for number in there):
                return
            time.sleep(nap)
            nap = min(2 * nap, _LONGEST_NAP)

    def check(self) -> None:
        """See whether there is still something to do.

        Raises:
            WorkIsOverError: there is not.
        """
        self._show()
        if self._over:
            raise WorkIsOverError

    def _look(self) -> None:
        """See what the others show."""
        self.check()
        for number, peer in self._peers.items():
            said = self._read(number)
            if said and said != peer.said:
                peer.changed, peer.said, peer.seen = time.monotonic(), said, True
            if peer.seen and any(
                ours != theirs for ours, theirs in zip(self._phases, peer.said["phases"], strict=False)
            ):
                raise DataError(
                    f"shard {number} of {self.count} ({peer.name}) does other work than this one.",
                    where=str(self._folder),
                    hint="All shards need the same config and version of llmkit, and must see the same files.",
                )

    def _is_gone(self, number: int) -> bool:
        peer = self._peers[number]
        ended = peer.seen and peer.said["state"] != "works"
        silent = time.monotonic() - peer.changed > SILENCE
        if (ended or silent) and number not in self._told:
            self._told.add(number)
            if not peer.seen:
                say(f"shard {number} of {self.count} has not begun; the others do its part.")
            elif peer.said["state"] != "done":
                what = "has failed" if ended else f"has shown no sign of life for {SILENCE:.0f} seconds"
                say(f"shard {number} of {self.count} ({peer.name}) {what}; the others do its part.")
        return ended or silent

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            self._show()

    def _show(self) -> None:
        with self._lock:
            if self._beats and not self._place(self.number).exists():
                self._over = True
                return
            self._beats += 1
            said = {
                "host": socket.gethostname(),
                "process": os.getpid(),
                "beat": self._beats,
                "state": self._state,
                "phases": list(self._phases),
            }
            beside = self._folder / f".{self.number}-of-{self.count}.{socket.gethostname()}.{os.getpid()}"
            beside.write_text(canonical_json(said), encoding="utf-8")
            beside.replace(self._place(self.number))

    def _read(self, number: int) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._place(number).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def _place(self, number: int) -> Path:
        return self._folder / f"{number}-of-{self.count}.json"


def remove_signs(folder: Path, name: str) -> None:
    """Remove what the shards of a stage have shown."""
    for file in (folder / _FOLDER / name).glob("*.json"):
        file.unlink(missing_ok=True)
    for place in (folder / _FOLDER / name, folder / _FOLDER):
        with contextlib.suppress(OSError):
            place.rmdir()
