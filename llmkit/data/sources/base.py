"""The contract of a reader, and the records it gives."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from llmkit.config.base import Finding
from llmkit.data.sources.config import SourceConfig
from llmkit.data.sources.files import SourceFile, is_compressed
from llmkit.store.documents import Document, document_id
from llmkit.store.files import sha256_json

Reason = Literal["malformed", "encoding", "unreadable", "too large", "no text", "limits", "refused", "generated"]
"""Why a record is no document: it breaks the rules of its format; its bytes are not valid in their encoding; its file
is cut off or damaged; it is larger than is read; it holds no text (a picture, a scanned page, an answer that there is
no such page); reading it took too much time or memory; robots.txt forbids it, or its address is a private one;
a program wrote it (minified code)."""

_COPY_CHARACTERS = 4096
SLICE_BYTES = 1 << 24
"""Of one part of a source: some seconds of work, so that a run that was killed has lost little and all processes are at
work to the end."""
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d")
_FILE_BYTES = 1 << 10
"""What opening a file costs, in bytes read."""
_EXPANSION = 4
"""Bytes that a byte of a compressed file stands for, about."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A record that cannot be read.

    Args:
        source: name of the source.
        path: the file or record inside the source.
        detail: where it is broken and how ("line 7: not JSON: ...").
        text: a copy of its beginning that is valid text, undecodable bytes escaped.
        reason: what kind of damage it is, for counting.
    """

    source: str
    path: str
    detail: str
    text: str = ""
    reason: Reason = "malformed"

    def as_document(self) -> Document:
        """The copy as a document, to be kept beside others that were dropped."""
        return Document(document_id(self.text), self.text, self.source, self.path)


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is no record; what is behind it is read on, as far as the beginning of a record is found.

    Args:
        position: where it begins.
        detail: what is wrong.
        reason: what kind of damage it is.
    """

    position: int
    detail: str
    reason: Reason


Record = Document | Broken


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a source that is read by itself; slices do not overlap, and all of them together are the source.

    Slices depend on the source's content and settings alone, never on how many processes there are.

    Args:
        name: what it covers, for messages ("books/a.jsonl, bytes 0 to 67,108,864").
        files: paths or URLs, each with its name in documents; empty for a source without files.
        begin: where it begins inside of its only file, in units of the reader (bytes, row groups); 0 for whole files.
        end: where it ends; None for the end.
        version: what changes when the content does (sizes and times of change, revisions, ETags).
    """

    name: str
    files: tuple[SourceFile, ...] = ()
    begin: int = 0
    end: int | None = None
    version: str = ""


class Reader(Protocol):
    """Reads one source."""

    def check(self) -> Iterator[Finding]:
        """What is wrong with the source as far as a quick look tells; keys are relative to the source."""
        ...

    def slices(self) -> list[Slice]:
        """The parts that can be read side by side, in the order of the source; none too large for one task."""
        ...

    def read(self, piece: Slice) -> Iterator[Record]:
        """Every record of a slice in an order that depends on its content alone, holding few of them in memory.

        A broken record is given as `Broken` and the rest is read on. Documents come without an id, which is that of
        the cleaned text.

        Raises:
            DataError: the rest of the slice cannot be read and what is missing cannot be told.
        """
        ...


def read_all(reader: Reader) -> Iterator[Record]:
    """Every record of a source, slice after slice."""
    for piece in reader.slices():
        yield from reader.read(piece)


def file_slices(
    files: Iterable[SourceFile], bounds: Callable[[SourceFile], Sequence[int]] | None = None
) -> list[Slice]:
    """Slices of files: small neighbours together up to some size, so that many small files are few tasks.

    Args:
        files: the files.
        bounds: where a file larger than a slice can be cut, its two ends included, in units of the reader; None where
            files are read whole.
    """
    found: list[Slice] = []
    group: list[SourceFile] = []
    room = 0
    for file in files:
        cuts = bounds(file) if bounds is not None and file.size > SLICE_BYTES else ()
        size = file.size * (_EXPANSION if is_compressed(file.name) else 1) + _FILE_BYTES
        if group and (size > room or len(cuts) > 2):
            found.append(_whole_files(group))
            group = []
        if len(cuts) > 2:
            found += [_part(file, begin, end) for begin, end in pairwise(cuts)]
            continue
        if not group:
            room = SLICE_BYTES
        group.append(file)
        room -= size
    return [*found, _whole_files(group)] if group else found


def _part(file: SourceFile, begin: int, end: int) -> Slice:
    return Slice(f"{file.name}, {begin:,} to {end:,}", (file,), begin, end, version_of([file]))


def _whole_files(files: list[SourceFile]) -> Slice:
    name = files[0].name if len(files) == 1 else f"{files[0].name} to {files[-1].name}"
    return Slice(name, tuple(files), version=version_of(files))


def version_of(files: Iterable[SourceFile]) -> str:
    """What changes when one of the files does."""
    return sha256_json([(file.name, file.size, file.version) for file in files])


def day_of(date: str) -> str:
    """The day of a moment that is written by ISO 8601 ("2024-05-01T10:00:00Z"); other dates as they are."""
    return date[:10] if _MOMENT.match(date) else date


def make_record(
    source: SourceConfig,
    text: str,
    path: str,
    metadata: Mapping[str, str],
    language: str | None = None,
    license: str | None = None,
) -> Record:
    """A document of a source; or `Broken`, where the text or what is known of it hold what no UTF-8 file can.

    Args:
        source: its settings, whose language and licence come first.
        text: the text.
        path: of the document.
        metadata: what else is known of the text.
        language: the one that the text's file names, if it does.
        license: likewise.
    """
    for value in (text, *metadata.values(), language or "", license or ""):
        problem = surrogate_problem(value)
        if problem:
            return Broken(source.label, path, problem, readable_copy(text), "encoding")
    return Document("", text, source.label, path, source.license or license, source.language or language, metadata)


def surrogate_problem(text: str) -> str | None:
    """What is wrong with a text that holds surrogates: undecodable bytes (escaped as such) or a half of a pair."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        where = f"character {error.start:,}"
        if 0xDC80 <= code <= 0xDCFF:
            return f"{where}: the byte 0x{code - 0xDC00:02x} is not valid in the file's encoding"
        return f"{where}: half of a surrogate pair (U+{code:04X})"
    return None


def readable_copy(text: str | bytes) -> str:
    """The beginning of a broken record as valid text, what cannot be shown written as an escape."""
    if isinstance(text, bytes):
        return text[:_COPY_CHARACTERS].decode("utf-8", "backslashreplace")
    return text[:_COPY_CHARACTERS].encode("utf-8", "backslashreplace").decode()
