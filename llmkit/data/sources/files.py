"""Files of a source: which ones a pattern means, and opening them plain or compressed."""

from __future__ import annotations

import glob
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from llmkit.config.base import Finding

COMPRESSIONS = (".gz", ".zst")
READ_ERRORS = (OSError, EOFError, zlib.error, UnicodeDecodeError)
"""What reading a damaged file raises (pyarrow's own errors are subclasses of OSError and ValueError)."""
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source.

    Args:
        path: where it is.
        name: its path relative to the folder or to the part of the pattern without wildcards, with forward slashes; so
            that documents do not depend on where a collection lies.
    """

    path: Path
    name: str


def find_files(patterns: Iterable[str], endings: Sequence[str]) -> list[SourceFile]:
    """The files that patterns mean, each once: pattern after pattern, within one in the order of their names.

    Args:
        patterns: files, folders or glob patterns.
        endings: endings, before that of a compression, of the files that are read of a folder.
    """
    found: dict[Path, SourceFile] = {}
    for pattern in patterns:
        for file in sorted(_matches(pattern, endings), key=lambda file: file.name):
            found.setdefault(file.path.resolve(), file)
    return list(found.values())


def _matches(pattern: str, endings: Sequence[str]) -> Iterator[SourceFile]:
    path = Path(pattern)
    if path.is_dir():
        for file in path.rglob("*"):
            name = file.relative_to(path)
            hidden = any(part.startswith(".") for part in name.parts)
            if file.is_file() and not hidden and ending_of(file.name) in endings:
                yield SourceFile(file, name.as_posix())
    elif path.is_file():
        yield SourceFile(path, path.name)
    else:
        root = _fixed_part(pattern)
        for match in glob.glob(pattern, recursive=True):  # noqa: PTH207 - the pattern may be absolute
            if Path(match).is_file():
                yield SourceFile(Path(match), Path(match).relative_to(root).as_posix())


def _fixed_part(pattern: str) -> Path:
    parts = Path(pattern).parts
    fixed = next((index for index, part in enumerate(parts) if _MAGIC.search(part)), len(parts) - 1)
    return Path(*parts[:fixed])


def ending_of(name: str) -> str:
    """The ending of a file's name in lower case (".jsonl"), that of a compression left off."""
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def check_files(patterns: Sequence[str], endings: Sequence[str]) -> Iterator[Finding]:
    """A finding for each pattern that means no file; keys are those of `FileSource.files`."""
    for index, pattern in enumerate(patterns):
        if not find_files([pattern], endings):
            inside = Path(pattern).is_dir()
            message = (
                f"the folder `{pattern}` holds no file that ends in {', '.join(endings)}, alone or before .gz or .zst."
                if inside
                else f"no file is called or matches `{pattern}`."
            )
            hint = "Name files of other endings by a pattern." if inside else f"Paths are relative to {Path.cwd()}."
            yield Finding(message, key=f"files.{index}", hint=hint)


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed as its name says.

    Raises:
        OSError: it cannot be opened; damage inside of it raises one of `READ_ERRORS` while it is read.
    """
    ending = path.suffix.lower()
    if ending == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if ending == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def open_text(path: Path, encoding: str) -> IO[str]:
    """Open a file as text, decompressed, line breaks as they are, a byte order mark at its start left out.

    A byte that is not valid becomes a lone surrogate, which `surrogate_problem` finds: one bad record does not hide
    the rest of the file.
    """
    form = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    return io.TextIOWrapper(open_bytes(path), encoding=form, errors="surrogateescape", newline="")
