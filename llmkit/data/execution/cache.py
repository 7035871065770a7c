"""Results of tasks on disk, each under the digest of what it was made from: whole, or not there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from llmkit.data.execution.tasks import Result, Task, Work, task_function
from llmkit.store.files import canonical_json, sync_directory, sync_file

_RESULT = "result.json"
_RESULTS = "results"
_UNFINISHED = "unfinished"


class Cache:
    """A folder of results. Any number of processes, on any machines that share it, may use it at the same time.

    A result is made in a folder of its own and renamed into place when all of it is on disk, so that killing whoever
    makes it leaves nothing half done. Where two make the same one, the first stays; their bytes are equal.

    Args:
        root: the folder, made where it is absent.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def place(self, key: str) -> Path:
        """Where the result of that key is, once it is made."""
        return self.root / _RESULTS / key[:2] / key

    def get(self, key: str) -> Result | None:
        """The result of that key, or None where it is not made, or some of its files are gone or cut short."""
        place = self.place(key)
        try:
            found = json.loads((place / _RESULT).read_text(encoding="utf-8"))
            whole = all((place / name).stat().st_size == size for name, size in found["files"].items())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError):
            whole = False
        if not whole:
            self._remove(place)
            return None
        return Result(key, place, found["facts"])

    def make(self, task: Task) -> Result:
        """The result of a task, made unless it is there.

        Raises:
            LLMKitError: what the task's function raises.
        """
        found = self.get(task.key)
        if found is not None:
            return found
        inputs = {name: [self._input(key, task) for key in keys] for name, keys in task.inputs.items()}
        with self._unfinished(task.key) as folder:
            work = Work(task.settings, task.places, inputs, folder)
            facts = dict(task_function(task.function)(work) or {})
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            described = {
                "task": task.name,
                "label": task.label,
                "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in files},
                "facts": facts,
            }
            (folder / _RESULT).write_text(canonical_json(described), encoding="utf-8")
            for file in (*files, folder / _RESULT):
                sync_file(file)
            sync_directory(folder)
            place = self.place(task.key)
            place.parent.mkdir(parents=True, exist_ok=True)
            # Somebody else may have made the same: a folder that holds something is not replaced.
            with contextlib.suppress(OSError):
                folder.rename(place)
                sync_directory(place.parent)
        made = self.get(task.key)
        if made is None:
            raise OSError(f"the result of the task {task.name} could not be put at {self.place(task.key)}")
        return made

    def clear_unfinished(self) -> None:
        """Remove what processes of this machine that are no more have left half done."""
        for folder in (self.root / _UNFINISHED).glob(f"{_machine()}-*"):
            process = folder.name.removeprefix(f"{_machine()}-").partition("-")[0]
            if not (process.isdigit() and _is_alive(int(process))):
                shutil.rmtree(folder, ignore_errors=True)

    def keep_only(self, keys: Collection[str]) -> None:
        """Remove the results of all other keys."""
        wanted = set(keys)
        for place in (self.root / _RESULTS).glob("*/*"):
            if place.name not in wanted:
                self._remove(place)

    def remove(self, keys: Collection[str]) -> None:
        """Remove the results of these keys, and the folder, once nothing is in it any more."""
        for key in keys:
            self._remove(self.place(key))
        for folder in (*(self.root / _RESULTS).glob("*"), self.root / _RESULTS, self.root / _UNFINISHED, self.root):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _input(self, key: str, task: Task) -> Result:
        found = self.get(key)
        if found is None:
            raise OSError(f"the task {task.name} reads {self.place(key)}, which is not there")
        return found

    @contextmanager
    def _unfinished(self, key: str) -> Iterator[Path]:
        parent = self.root / _UNFINISHED
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{_machine()}-{os.getpid()}-{key[:8]}-", dir=parent))
        # Others than the owner may have to read what is renamed out of it.
        folder.chmod(0o777 & ~_umask())
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _remove(self, place: Path) -> None:
        """Rename before removing, so that a half-removed result is never taken for one."""
        if place.exists():
            parent = self.root / _UNFINISHED
            parent.mkdir(parents=True, exist_ok=True)
            doomed = tempfile.mkdtemp(prefix=f"{_machine()}-{os.getpid()}-removed-", dir=parent)
            with contextlib.suppress(FileNotFoundError):
                place.rename(Path(doomed) / place.name)
            shutil.rmtree(doomed, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _machine() -> str:
    """What numbers of processes belong to: containers of one machine may count their own ones."""
    try:
        space = Path("/proc/self/ns/pid").readlink().name
    except OSError:
        space = ""
    return f"{socket.gethostname()}-{''.join(filter(str.isdigit, space))}"


def _is_alive(process: int) -> bool:
    try:
        # A process that has ended and that nobody has waited for yet, a zombie, writes no more.
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] not in "ZX"
