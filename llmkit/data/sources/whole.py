"""Files that are read whole: one record each."""

from __future__ import annotations

from llmkit.data.sources.base import Broken, readable_copy
from llmkit.data.sources.files import READ_ERRORS, SourceFile, open_bytes


def read_whole(label: str, file: SourceFile, max_bytes: int) -> bytes | Broken:
    """The bytes of a file, decompressed as its name says; `Broken` where it is damaged or larger than `max_bytes`.

    Args:
        label: name of the source.
        file: the file.
        max_bytes: no more than this is held in memory.

    Raises:
        DataError: a URL cannot be read.
    """
    try:
        with open_bytes(file.path) as stream:
            data = stream.read(max_bytes + 1)
    except READ_ERRORS as error:
        return Broken(label, file.name, f"the file cannot be read: {error}", reason="unreadable")
    if len(data) > max_bytes:
        detail = f"the file is longer than {max_bytes:,} bytes"
        return Broken(label, file.name, detail, readable_copy(data[:4096]), "too large")
    return data


def decode_whole(label: str, file: SourceFile, data: bytes, encoding: str) -> str | Broken:
    """The text of a file without a byte order mark; `Broken` where its bytes are not valid in the encoding."""
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        detail = f"byte {error.start:,}: not valid {encoding} ({error.reason})"
        return Broken(label, file.name, detail, readable_copy(data), "encoding")
