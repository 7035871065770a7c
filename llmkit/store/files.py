"""Files that are whole or absent: digests, atomic writes, synced renames, locks."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmkit.errors import ArtifactLockedError

_CHUNK = 1 << 20


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_json(value: Any) -> str:
    """Hexadecimal sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_tree(path: Path) -> str:
    """Hexadecimal sha256 of a file, or of the names and bytes of all files below a folder."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sha256_json([[name, sha256_file(path / name)] for name in files])


def sync_directory(path: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def write_text_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader, or a machine that lost power, sees the old bytes or the new ones."""
    # One name for every attempt: what a killed one left is written over and not left beside the file for ever.
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
        sync_directory(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()


def write_json_atomic(path: Path, value: Any) -> None:
    """The same for a value as indented JSON."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def remove_tree(path: Path) -> None:
    """Remove a folder, under another name first, so that a half-removed one is never taken for a whole one."""
    if path.exists():
        doomed = path.with_name(f".{path.name}.{os.getpid()}.removed")
        path.rename(doomed)
        shutil.rmtree(doomed)


def replace_directory(new: Path, place: Path) -> None:
    """Put the folder `new`, already complete and synced, at `place`; what stood there goes once `new` is in.

    Killed between the two renames, `place` is absent and `new` whole: `Workspace` finishes the move at the next start.
    """
    old = place.with_name(f".{place.name}.replaced")
    if old.exists():
        shutil.rmtree(old)
    if place.exists():
        place.rename(old)
    new.rename(place)
    sync_directory(place.parent)
    if old.exists():
        shutil.rmtree(old)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is made where it is absent and goes with the process.

    Raises:
        ArtifactLockedError: another process holds it; the message names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise ArtifactLockedError(
                f"{what} is being written by {holder}.",
                where=str(path),
                hint="Wait for it to end, or stop it; the lock goes with the process.",
            ) from None
        stream.seek(0)
        stream.truncate()
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        yield
