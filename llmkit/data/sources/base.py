"""The contract of a reader, and the records it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from llmkit.config.base import Finding
from llmkit.data.config import SourceConfig
from llmkit.store.documents import Document, document_id

_COPY_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Broken:
    """A record that cannot be read.

    Args:
        source: name of the source.
        path: the file or record inside the source.
        detail: where it is broken and how ("line 7: not JSON: ...").
        text: a copy of its beginning that is valid text, undecodable bytes escaped.
    """

    source: str
    path: str
    detail: str
    text: str = ""

    def as_document(self) -> Document:
        """The copy as a document, to be kept beside others that were dropped."""
        return Document(document_id(self.text), self.text, self.source, self.path)


Record = Document | Broken


class Reader(Protocol):
    """Reads one source."""

    def check(self) -> Iterator[Finding]:
        """What is wrong with the source as far as a quick look tells; keys are relative to the source."""
        ...

    def read(self) -> Iterator[Record]:
        """Every record in an order that depends on the source's content alone, holding few of them in memory.

        A broken record is given as `Broken` and the rest is read on. Documents come without an id, which is that of
        the cleaned text.

        Raises:
            DataError: the rest of the source cannot be read and what is missing cannot be told.
        """
        ...


def make_record(source: SourceConfig, text: str, path: str, metadata: Mapping[str, str]) -> Record:
    """A document of a source; or `Broken`, where the text or the metadata hold what no UTF-8 file can."""
    for value in (text, *metadata.values()):
        problem = surrogate_problem(value)
        if problem:
            return Broken(source.label, path, problem, readable_copy(text))
    return Document("", text, source.label, path, source.license, source.language, metadata)


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
