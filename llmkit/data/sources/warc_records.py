"""Records of web archives (WARC 1.0 and 1.1, ISO 28500), found again behind whatever is damaged.

Archives are cut into records here and not by a library, since that decides where a damaged one ends, what is read of
one that claims to be endless, and where a part of a large file begins.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO, Self

from llmkit.data.sources.base import Damage
from llmkit.data.sources.compression import COMPRESSIONS, Members
from llmkit.data.sources.files import READ_ERRORS, SourceFile, open_bytes, open_raw

_BUFFER_BYTES = 1 << 18
_HEADER_BYTES = 1 << 16
_START = b"WARC/"
_GZIP = b"\x1f\x8b\x08"
_GZIP_LOOKED_AT = 1 << 10
"""A gzip header with a long file name still shows the first bytes of its content within these."""
_PLAIN = b"\n\r\nWARC/1."


@dataclass(frozen=True, slots=True)
class WarcRecord:
    """A record.

    Args:
        position: the byte at which it begins, or its gzip member; in other compressed files a byte of what they hold.
        headers: values by name in lower case.
        header: the header as it is written, with the blank line that ends it.
        length: bytes of the content.
        content: the content; None where it is larger than is read.
    """

    position: int
    headers: Mapping[str, str]
    header: bytes
    length: int
    content: bytes | None


def warc_records(file: SourceFile, most: int, begin: int = 0, end: int | None = None) -> Iterator[WarcRecord | Damage]:
    """The records of a file that begin in a part of it, in order.

    Args:
        file: the file, plain or compressed; in gzip, a member for each record is usual, and not needed.
        most: bytes of the largest content that is read; larger ones are passed over.
        begin: where the part begins, in bytes as the file is stored; of files that `is_cut` alone.
        end: where it ends; None for the end of the file.
    """
    position = begin if begin == 0 else next_record(file, begin)
    while position is not None and (end is None or position < end):
        with _Archive(file, position) as archive:
            while True:
                try:
                    record = archive.read(most, end)
                except _MalformedError as error:
                    yield Damage(archive.position, str(error), "malformed")
                    break
                except READ_ERRORS as error:
                    yield Damage(archive.position, f"the file cannot be read on: {error}", "unreadable")
                    break
                if record is None:
                    return
                yield record
            position = next_record(file, archive.position + 1)


def plain_bounds(file: SourceFile, step: int) -> list[int]:
    """Where a file that is not compressed is cut between two records, about `step` bytes apart, its ends included."""
    bounds = [0]
    for found in warc_records(file, 0):
        if found.position >= bounds[-1] + step:
            bounds.append(found.position)
    return [*bounds, file.size]


def is_gzip(file: SourceFile) -> bool:
    """Whether a file is compressed by gzip, by its name."""
    return file.name.lower().endswith(".gz")


def next_record(file: SourceFile, position: int) -> int | None:
    """Where the next record begins at or after a byte; None where there is none, or it cannot be told.

    In gzip, the next member that begins with a record; in plain files, the next header behind a blank line.
    """
    if _compression(file) not in ("", ".gz"):
        return None
    mark = _GZIP if is_gzip(file) else _PLAIN
    # In a plain file the line break that ends the record before stands before the position.
    overlap = 0 if is_gzip(file) else len(_PLAIN) - len(b"WARC/1.")
    try:
        with open_raw(file.path) as stream:
            start = max(position - overlap, 0)
            stream.seek(start)
            held = b""
            while data := stream.read(_BUFFER_BYTES):
                held += data
                at = held.find(mark)
                while at >= 0 and at + _GZIP_LOOKED_AT <= len(held):
                    if _begins(held, at, mark):
                        return start + at + overlap
                    at = held.find(mark, at + 1)
                kept = at if at >= 0 else max(len(held) - len(mark) + 1, 0)
                held, start = held[kept:], start + kept
            at = held.find(mark)
            while at >= 0:
                if _begins(held, at, mark):
                    return start + at + overlap
                at = held.find(mark, at + 1)
    except READ_ERRORS:
        return None
    return None


def _begins(data: bytes, at: int, mark: bytes) -> bool:
    """Whether a record begins at a mark."""
    if mark == _PLAIN:
        return True
    try:
        return zlib.decompressobj(31).decompress(data[at : at + _GZIP_LOOKED_AT], len(_START)) == _START
    except zlib.error:
        return False


def _compression(file: SourceFile) -> str:
    suffix = PurePosixPath(file.name.lower()).suffix
    return suffix if suffix in COMPRESSIONS else ""


class _MalformedError(ValueError):
    """What stands here is no record."""


class _Archive:
    """A file that is read record by record from some place on.

    Args:
        file: the file.
        begin: where to begin, in bytes as it is stored.
    """

    def __init__(self, file: SourceFile, begin: int) -> None:
        self.position = begin
        self._begin = begin
        self._consumed = 0
        self._members: Members | None = None
        self._size = 0
        stream: Any
        try:
            if is_gzip(file):
                self._members = Members(_sought(file, begin), ".gz", begin)
                stream = io.BufferedReader(self._members, _BUFFER_BYTES)
            elif _compression(file):
                stream = open_bytes(file.path)
            else:
                stream = _sought(file, begin)
                self._size = file.size
        except OSError as error:
            self._failed: OSError | None = error
        else:
            self._failed = None
            self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._failed is None:
            self._stream.close()

    def read(self, most: int, end: int | None) -> WarcRecord | None:
        """The next record; None where the file ends, or a part of it does.

        Raises:
            _MalformedError: what stands here is no record, or one that is not as long as it says.
            OSError: or another of `READ_ERRORS`, where the file cannot be read on.
        """
        if self._failed is not None:
            raise self._failed
        line = b"\n"
        while line and not line.strip():
            cut = self._mark()
            line = self._line()
        if not line or (cut and end is not None and self.position >= end):
            return None
        if not line.startswith(_START):
            raise _MalformedError("no record begins here")
        header, headers = self._header(line)
        stated = headers.get("content-length", "")
        if not (stated.isascii() and stated.isdigit() and len(stated) < 20):
            raise _MalformedError(f"the record's length is not a number ({stated[:40]!r})")
        length = int(stated)
        self._look_ahead(length)
        pieces: list[bytes] = []
        for piece in self._content(length):
            if length <= most:
                pieces.append(piece)
        if self._line().strip() or self._line().strip():
            raise _MalformedError(f"the record does not end after the {length:,} bytes that it says it has")
        return WarcRecord(self.position, headers, header, length, b"".join(pieces) if length <= most else None)

    def _mark(self) -> bool:
        """Note where the next line begins; whether a part of the file may begin there."""
        if self._members is None:
            self.position = self._begin + self._consumed
            return True
        before = self._members.member
        first = self._consumed == 0
        try:
            self._stream.peek(1)
        finally:
            self.position = self._members.member
        return first or self.position != before

    def _line(self) -> bytes:
        line: bytes = self._stream.readline(_HEADER_BYTES)
        self._consumed += len(line)
        return line

    def _header(self, line: bytes) -> tuple[bytes, dict[str, str]]:
        lines = [line]
        size = len(line)
        while line.strip():
            line = self._line()
            if not line:
                raise EOFError("the header of a record is cut off")
            lines.append(line)
            size += len(line)
            if size > _HEADER_BYTES:
                raise _MalformedError(f"the header of the record is longer than {_HEADER_BYTES:,} bytes")
        headers: dict[str, str] = {}
        for entry in lines[1:-1]:
            name, _, value = entry.decode("utf-8", "backslashreplace").partition(":")
            headers.setdefault(name.strip().lower(), value.strip())
        return b"".join(lines), headers

    def _look_ahead(self, length: int) -> None:
        """See that a record ends where it says, before it is read: of many that lie, each would be a long way."""
        if not self._size:
            return
        here = self._begin + self._consumed
        if here + length > self._size:
            raise EOFError(f"the record is cut off: {self._size - here:,} of {length:,} bytes are there")
        self._stream.seek(here + length)
        behind = self._stream.read(4)
        if behind.replace(b"\r", b"")[:2].strip():
            raise _MalformedError(f"the record does not end after the {length:,} bytes that it says it has")
        self._stream.seek(here)

    def _content(self, length: int) -> Iterator[bytes]:
        left = length
        while left:
            piece: bytes = self._stream.read1(min(left, _BUFFER_BYTES))
            if not piece:
                raise EOFError(f"the record is cut off: {length - left:,} of {length:,} bytes are there")
            if self._members is not None and self._members.member != self.position and piece.startswith(_START):
                raise _MalformedError("the record does not end before another begins")
            left -= len(piece)
            self._consumed += len(piece)
            yield piece


def _sought(file: SourceFile, position: int) -> BinaryIO:
    stream = open_raw(file.path)
    stream.seek(position)
    return stream
