"""Files of a source, on a local disk or at a URL: which ones a pattern means, and opening them plain or compressed."""

from __future__ import annotations

import fnmatch
import glob
import io
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from llmkit.config.base import Finding
from llmkit.data.sources.compression import COMPRESSIONS, decompressed
from llmkit.errors import DataError

READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError)
"""What reading a damaged file raises (pyarrow's own errors are subclasses of OSError and ValueError)."""
_ARCHIVE_ERRORS = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)
_MAGIC = re.compile(r"[*?\[]")
_TWICE = ("**", "**")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
_REMOTE_BUFFER_BYTES = 1 << 20
_MARKS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "updated", "created", "CRC")
"""What file systems call that which changes with the content."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source.

    Args:
        path: where it is: a local path, or a URL that fsspec opens.
        name: its path relative to the folder or to the part of the pattern without wildcards, with forward slashes; so
            that documents do not depend on where a collection lies.
        size: bytes, as they are stored; 0 where that is not known.
        version: what changes when the content does (time of change, ETag).
    """

    path: str
    name: str
    size: int = 0
    version: str = ""


def is_url(place: str) -> bool:
    """Whether a place is a URL (`s3://bucket/a.txt`, `zip://a.txt::b.zip`) and not a local path."""
    return _URL.match(place) is not None


def find_files(patterns: Iterable[str], endings: Sequence[str] | None) -> list[SourceFile]:
    """The files that patterns mean, each once: pattern after pattern, within one in the order of their names.

    Args:
        patterns: files, folders or glob patterns, local or as URLs.
        endings: endings, before that of a compression, of the files that are read of a folder; None for all.

    Raises:
        DataError: a URL cannot be asked for.
    """
    found: dict[str, SourceFile] = {}
    for pattern in patterns:
        matches = _matches_of_url(pattern, endings) if is_url(pattern) else _matches(pattern, endings)
        for file in sorted(matches, key=lambda file: file.name):
            found.setdefault(file.path if is_url(file.path) else os.path.realpath(file.path), file)
    return list(found.values())


def local_file(path: Path, name: str) -> SourceFile:
    """A file on a local disk.

    Raises:
        OSError: it is not there.
        DataError: no document could tell its name, since that is no text.
    """
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    if shown != str(path):
        raise DataError(
            f"the name of the file `{shown}` is not valid UTF-8, and no document could tell it.",
            hint="Rename it, or name the files that are wanted by patterns that leave it out.",
        )
    stat = path.stat()
    return SourceFile(str(path), name, stat.st_size, str(stat.st_mtime_ns))


def _matches(pattern: str, endings: Sequence[str] | None) -> Iterator[SourceFile]:
    path = Path(pattern)
    if path.is_dir():
        for name in _files_below(str(path)):
            if _is_wanted(name, endings):
                yield local_file(path / name, name)
    elif path.is_file():
        yield local_file(path, path.name)
    else:
        root = Path(_fixed_part(pattern))
        for match in _glob(pattern):
            if match.is_file():
                yield local_file(match, match.relative_to(root).as_posix())


def _glob(pattern: str) -> Iterator[Path]:
    """What a pattern matches. As `glob` does it, but that `**` follows no links: two that lead back to their folder
    would be followed for ever, and a thousand folders inside each other are more than it can go down."""
    parts = PurePosixPath(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.glob(pattern))  # noqa: PTH207 - the pattern may be absolute
        return
    first = parts.index("**")
    rest = [
        part for part, before in zip(parts[first:], (None, *parts[first:]), strict=False) if (part, before) != _TWICE
    ]
    rest += ["*"] if rest[-1] == "**" else []
    for folder in filter(os.path.isdir, glob.glob(str(PurePosixPath(*parts[:first])))):  # noqa: PTH207
        yield from (Path(folder, name) for name in _files_below(folder) if _fits(name.split("/"), rest))


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether names of folders and, at last, of a file fit the parts of a pattern; `**` stands for any folders. Hidden
    names fit only what begins with a dot."""
    places = {0}
    for name in names:
        places |= {place + 1 for place in places if place < len(parts) and parts[place] == "**"}
        hidden = name.startswith(".")
        places = {
            place if parts[place] == "**" else place + 1
            for place in places
            if place < len(parts)
            and (parts[place].startswith(".") or not hidden)
            and (parts[place] == "**" or fnmatch.fnmatchcase(name, parts[place]))
        }
    return len(parts) in places


def _files_below(folder: str) -> Iterator[str]:
    """Paths of the files below a folder, relative to it; links to folders are not followed.

    Raises:
        DataError: a folder cannot be looked into.
    """
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(os.path.join(folder, inside)) as entries:  # noqa: PTH118 - many, and long ones
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{inside}{entry.name}/")
                    elif os.path.isfile(entry.path):  # noqa: PTH113 - and no link in a circle
                        yield inside + entry.name
        except OSError as error:
            hint = "Give it the right to be read, or name the files that are wanted by patterns."
            raise DataError(f"the folder `{folder}/{inside}` cannot be read: {error.strerror}.", hint=hint) from None


def _matches_of_url(pattern: str, endings: Sequence[str] | None) -> Iterator[SourceFile]:
    wrappers, url = _outer_wrappers(pattern)
    filesystem, path = filesystem_of(url)
    try:
        if not _MAGIC.search(path) and filesystem.isfile(path):
            yield _remote_file(filesystem.info(path), pattern, PurePosixPath(path).name)
            return
        inside = filesystem.isdir(path)
        found = filesystem.find(path, detail=True) if inside else filesystem.glob(path, detail=True)
    except Exception as error:
        raise _unreachable(pattern, error) from None
    root = path if inside else _fixed_part(path)
    for place, entry in found.items():
        name = place[len(root) :].strip("/") if place.startswith(root) else place
        if entry.get("type") == "file" and (not inside or _is_wanted(name, endings)):
            yield _remote_file(entry, wrappers + _url_of(filesystem, place, url), name)


def _outer_wrappers(pattern: str) -> tuple[str, str]:
    """A pattern without the names before it that say how files are fetched ("simplecache::"), and these."""
    wrappers = ""
    while "://" not in pattern.partition("::")[0] and "::" in pattern:
        first, _, pattern = pattern.partition("::")
        wrappers += f"{first}::"
    return wrappers, pattern


def _url_of(filesystem: Any, place: str, pattern: str) -> str:
    """The URL of a file that a pattern means; a pattern of files inside of an archive goes on with the archive's."""
    _, chained, outer = pattern.partition("::")
    return f"{filesystem.unstrip_protocol(place)}{chained}{outer}"


def _remote_file(entry: dict[str, Any], url: str, name: str) -> SourceFile:
    version = next((str(entry[mark]) for mark in _MARKS if entry.get(mark) is not None), "")
    return SourceFile(url, name, int(entry.get("size") or 0), version)


def _is_wanted(name: str, endings: Sequence[str] | None) -> bool:
    """Whether a file is read of a folder: its ending fits, and nothing on the way to it is hidden."""
    fits = endings is None or ending_of(name) in endings
    return fits and not any(part.startswith(".") for part in name.split("/"))


def _fixed_part(pattern: str) -> str:
    """The folders at the beginning of a pattern that hold no wildcards."""
    parts = PurePosixPath(pattern).parts
    fixed = next((index for index, part in enumerate(parts) if _MAGIC.search(part)), len(parts) - 1)
    return str(PurePosixPath(*parts[:fixed])) if fixed else ""


def name_of(place: str | Path) -> str:
    """The name of a file at a path or URL."""
    links = str(place).split("::")
    return PurePosixPath(next((link for link in links if "://" in link), links[0])).name


def ending_of(name: str) -> str:
    """The ending of a file's name in lower case (".jsonl"), that of a compression left off."""
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def is_compressed(name: str) -> bool:
    """Whether a file is compressed, by its name."""
    return PurePosixPath(name.lower()).suffix in COMPRESSIONS


def check_files(patterns: Sequence[str], endings: Sequence[str]) -> Iterator[Finding]:
    """A finding for each pattern that means no file; keys are those of `FileSource.files`."""
    for index, pattern in enumerate(patterns):
        key = f"files.{index}"
        try:
            if find_files([pattern], endings):
                continue
        except DataError as error:
            yield Finding(error.message, key=key, hint=error.hint)
            continue
        if not is_url(pattern) and Path(pattern).is_dir():
            known = ", ".join(endings)
            packed = ", ".join(COMPRESSIONS)
            yield Finding(
                f"the folder `{pattern}` holds no file that ends in {known}, alone or before {packed}.",
                key=key,
                hint="Name files of other endings by a pattern.",
            )
        else:
            hint = None if is_url(pattern) else f"Paths are relative to {Path.cwd()}."
            yield Finding(f"no file is called or matches `{pattern}`.", key=key, hint=hint)


def filesystem_of(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        DataError: nothing is installed that knows such URLs, or the archive that it leads into cannot be opened.
    """
    import fsspec

    try:
        return fsspec.url_to_fs(url)  # type: ignore[no-any-return]
    except ImportError as error:
        hint = "Install the fsspec package for it, such as s3fs for s3:// or gcsfs for gs://."
        raise DataError(f"`{url}` cannot be opened: {error}.", hint=hint) from None
    except Exception as error:
        raise _unreachable(url, error) from None


def open_raw(place: str | Path) -> BinaryIO:
    """Open a file for reading as it is stored; it can be sought in.

    Raises:
        OSError: a local file cannot be opened.
        DataError: a URL cannot be read; also raised later, while it is read. What a network keeps from us is no broken
            record: it can be had another time.
    """
    if isinstance(place, Path) or not is_url(place):
        return Path(place).open("rb")
    filesystem, path = filesystem_of(place)
    try:
        return io.BufferedReader(_Remote(filesystem, path, place), _REMOTE_BUFFER_BYTES)
    except _ARCHIVE_ERRORS as error:
        raise OSError(str(error)) from None
    except Exception as error:
        raise _unreachable(place, error) from None


def open_bytes(place: str | Path) -> BinaryIO:
    """Open a file for reading, decompressed as its name says.

    Raises:
        OSError: it cannot be opened; damage inside of it raises one of `READ_ERRORS` while it is read.
        DataError: a URL cannot be read.
    """
    stream = open_raw(place)
    ending = PurePosixPath(name_of(place).lower()).suffix
    return decompressed(stream, ending) if ending in COMPRESSIONS else stream


def open_text(place: str | Path, encoding: str) -> IO[str]:
    """Open a file as text, decompressed, line breaks as they are, a byte order mark at its start left out.

    A byte that is not valid becomes a lone surrogate, which `surrogate_problem` finds: one bad record does not hide
    the rest of the file.
    """
    form = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    return io.TextIOWrapper(open_bytes(place), encoding=form, errors="surrogateescape", newline="")


class _Remote(io.RawIOBase):
    """A file of a remote file system. What goes wrong in it is a `DataError`, whatever the file system raises; damage
    of an archive that the file is in is an `OSError`."""

    def __init__(self, filesystem: Any, path: str, url: str) -> None:
        super().__init__()
        # An archive is closed with its file system.
        self._filesystem = filesystem
        self._stream = filesystem.open(path, "rb")
        self._url = url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._stream.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = self._stream.read(len(view))
        except _ARCHIVE_ERRORS as error:
            raise OSError(str(error)) from None
        except Exception as error:
            raise _unreachable(self._url, error) from None
        view[: len(data)] = data
        return len(data)


def _unreachable(url: str, error: Exception) -> DataError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
    return DataError(f"`{url}` cannot be read: {reason}.", hint="What was read so far is kept: start the run again.")
