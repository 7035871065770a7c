"""Lines of a file, or of those that begin in a part of it, none longer than a bound."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import BinaryIO

from llmkit.data.sources.files import SourceFile, is_compressed, open_bytes

CHUNK_BYTES = 1 << 18
_ONE_BYTE_A_CHARACTER = frozenset({"utf-8", "ascii"})


def chunks(stream: BinaryIO) -> Iterator[bytes]:
    """What a stream holds, piece by piece; what comes before damage is given before it raises."""
    while data := stream.read1(CHUNK_BYTES):  # type: ignore[attr-defined]
        yield data


def part_bounds(file: SourceFile, encoding: str, step: int) -> list[int]:
    """Where a file is cut into parts that are read side by side; one part where it cannot be cut."""
    if is_compressed(file.name) or codecs.lookup(encoding).name not in _ONE_BYTE_A_CHARACTER:
        return [0, file.size]
    return [*range(0, file.size, step), file.size]


def lines(
    file: SourceFile, encoding: str, longest: int, begin: int = 0, end: int | None = None
) -> Iterator[tuple[int, bytes | None]]:
    """Lines as UTF-8 with the ends of lines left out; a byte that is not valid in UTF-8 files stays as it is.

    A line belongs to the part in which the end of the line before it stands, so that parts share no line and lose none.

    Args:
        file: the file, decompressed as its name says.
        encoding: its encoding; only files in UTF-8 or ASCII have parts.
        longest: bytes of the longest line that is given.
        begin: where the part begins, in bytes.
        end: where the part ends; None for all of the file.

    Yields:
        where the line begins, in bytes (of its UTF-8 form, decompressed), and the line: None for one that is longer.

    Raises:
        OSError: or another of `READ_ERRORS`, where the file cannot be read on.
    """
    with open_bytes(file.path) as stream:
        start, pieces = 0, chunks(stream)
        if begin:
            stream.seek(begin)
            found = _after_first_end(pieces, begin, end)
            if found is None:
                return
            start, rest = found
            pieces = chain([rest], pieces)
        elif codecs.lookup(encoding).name != "utf-8":
            pieces = _as_utf8(pieces, encoding)
        for number, (size, line) in enumerate(_split(pieces, longest)):
            if end is not None and start > end:
                return
            marked = number == 0 and begin == 0 and line is not None
            yield start, line.removeprefix(codecs.BOM_UTF8) if marked and line is not None else line
            start += size + 1


def _after_first_end(pieces: Iterator[bytes], position: int, end: int | None) -> tuple[int, bytes] | None:
    """Where the first line after the end of another begins, and what of it was read; None where the part has none."""
    for piece in pieces:
        if end is not None and position >= end:
            return None
        found = piece.find(b"\n")
        if found >= 0:
            return position + found + 1, piece[found + 1 :]
        position += len(piece)
    return None


def _split(pieces: Iterable[bytes], longest: int) -> Iterator[tuple[int, bytes | None]]:
    """Size and bytes of each line; only the size of one that is too long."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        first, *others = piece.split(b"\n")
        size += len(first)
        if size <= longest:
            held.append(first)
        else:
            held = []
        if others:
            yield size, b"".join(held) if size <= longest else None
            for line in others[:-1]:
                yield len(line), line if len(line) <= longest else None
            held, size = [others[-1]], len(others[-1])
    if size:
        yield size, b"".join(held) if size <= longest else None


def _as_utf8(pieces: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    # An invalid byte of another encoding becomes the same byte, which is not valid in UTF-8 and found there.
    name = codecs.lookup(encoding).name
    errors = "strict" if name.startswith(("utf-16", "utf-32")) else "surrogateescape"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    for piece in pieces:
        yield decoder.decode(piece).encode("utf-8", "surrogateescape")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")
