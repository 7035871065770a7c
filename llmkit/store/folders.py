"""Folders on a local disk or at an fsspec URL (`s3://bucket/runs`), used alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from llmkit.errors import ConfigError
from llmkit.store.files import sync_directory, write_text_atomic


@dataclass(frozen=True)
class Folder:
    """A folder that need not exist yet. What goes wrong in it is an `OSError`, whatever file system it is on.

    Args:
        filesystem: of fsspec.
        path: in the file system, without a slash at its end.
        local: the same on the local disk; None elsewhere.
    """

    filesystem: Any
    path: str
    local: Path | None

    @classmethod
    def at(cls, place: str | Path, where: str | None = None) -> Folder:
        """The folder at a path or URL.

        Args:
            place: "runs/x", "memory://x", "s3://bucket/x".
            where: place of the setting that names it, for messages.

        Raises:
            ConfigError: nothing is installed that knows such URLs.
        """
        try:
            filesystem, path = fsspec.url_to_fs(str(place))
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"`{place}` cannot be opened: {error}.",
                where=where,
                hint="Install the fsspec package for it, such as s3fs for s3:// or gcsfs for gs://.",
            ) from None
        # Other protocols lead to the local disk through a wrapper, which has no place for a rename.
        local = isinstance(filesystem, fsspec.get_filesystem_class("file"))
        return cls(filesystem, path.rstrip("/"), Path(path) if local else None)

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.filesystem, f"{self.path}/{name}", None if self.local is None else self.local / name)

    def __str__(self) -> str:
        return str(self.filesystem.unstrip_protocol(self.path)) if self.local is None else str(self.local)

    def make(self) -> None:
        """Make the folder, where the file system has folders."""
        with self._os_errors():
            self.filesystem.makedirs(self.path, exist_ok=True)

    def files(self) -> list[str]:
        """Names of all files below the folder, relative to it, in order."""
        with self._os_errors():
            self.filesystem.invalidate_cache()
            found = self.filesystem.find(self.path) if self.filesystem.exists(self.path) else []
            return sorted(str(file)[len(self.path) + 1 :] for file in found)

    def folders(self) -> list[str]:
        """Names of the folders directly in this one, in order."""
        with self._os_errors():
            self.filesystem.invalidate_cache()
            if not self.filesystem.exists(self.path):
                return []
            found = self.filesystem.ls(self.path, detail=True)
            return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] != "file")

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        with self._os_errors():
            file = f"{self.path}/{name}"
            return int(self.filesystem.size(file)) if self.filesystem.isfile(file) else None

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Write a file in the folder; where the context ends without an error, it is durable."""
        with self._os_errors():
            file = f"{self.path}/{name}"
            self.filesystem.makedirs(file.rpartition("/")[0], exist_ok=True)
            if self.local is not None:
                with (self.local / name).open("wb") as stream:
                    yield stream
                    stream.flush()
                    os.fsync(stream.fileno())
            else:
                with self.filesystem.open(file, "wb") as stream:
                    yield stream

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Read a file of the folder."""
        with self._os_errors():
            if self.local is not None:
                with (self.local / name).open("rb") as stream:
                    yield stream
            else:
                with self.filesystem.open(f"{self.path}/{name}", "rb") as stream:
                    yield stream

    def write_whole(self, name: str, text: str) -> None:
        """Write a small file so that it is there whole or not at all."""
        with self._os_errors():
            if self.local is not None:
                write_text_atomic(self.local / name, text)
            else:
                self.filesystem.pipe_file(f"{self.path}/{name}", text.encode("utf-8"))

    def read(self, name: str) -> bytes:
        """The bytes of a small file."""
        with self.open(name) as stream:
            return stream.read()

    def remove(self, first: str) -> None:
        """Remove the folder, and the file `first` before any other, so that a half-removed one is known by it."""
        with self._os_errors():
            self.filesystem.invalidate_cache()
            if self.filesystem.exists(f"{self.path}/{first}"):
                self.filesystem.rm(f"{self.path}/{first}")
            if self.filesystem.exists(self.path):
                self.filesystem.rm(self.path, recursive=True)

    def sync(self) -> None:
        """Make the names below the folder, and its own, durable where that is up to us."""
        if self.local is not None:
            for path in [self.local, *(found for found in self.local.rglob("*") if found.is_dir())]:
                sync_directory(path)
            sync_directory(self.local.parent)

    @contextmanager
    def _os_errors(self) -> Iterator[None]:
        """Other file systems have errors of their own; callers know one kind."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            if self.local is not None:
                raise
            raise OSError(f"{type(error).__name__}: {error}") from error
