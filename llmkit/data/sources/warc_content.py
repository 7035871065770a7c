"""Bodies of answers in web archives, decompressed as their headers say; none is taken for whole that is not."""

from __future__ import annotations

import io
import zlib

from llmkit.data.sources.compression import decompressed
from llmkit.data.sources.files import READ_ERRORS

_GZIP = b"\x1f\x8b"
_EITHER = 47
"""zlib's code for gzip or zlib, by the header."""
_BARE = -15
"""zlib's code for a stream without a header, which some servers call `deflate`."""
_STEP_BYTES = 1 << 16


class ContentError(ValueError):
    """A body is not compressed as its header says."""


def decoded_content(body: bytes, encodings: str, most: int, *, cut: bool) -> bytes:
    """What a body holds.

    FastWARC decodes these as well, and gives the beginning of one that is cut off as if it were all of it.

    Args:
        body: as it was sent, in one piece.
        encodings: value of its `Content-Encoding`: in the order in which they were applied.
        most: no more than this many bytes, and one, are given.
        cut: whether the archive says that it holds the beginning of the body alone.

    Raises:
        ContentError: it is not compressed so, or is cut off.
    """
    names = [name.strip().lower() for name in encodings.split(",")]
    for name in reversed([name for name in names if name not in ("", "identity")]):
        try:
            body, whole = _decoded(body, name, most)
        except READ_ERRORS as error:
            raise ContentError(str(error)) from None
        if not whole and not cut and len(body) <= most:
            raise ContentError("the compressed data are cut off")
    return body


def _decoded(body: bytes, name: str, most: int) -> tuple[bytes, bool]:
    """At most one byte more than `most`, and whether the data come to their end."""
    if name in ("gzip", "x-gzip", "deflate"):
        return _inflated(body, name, most)
    if name == "zstd":
        with decompressed(io.BytesIO(body), ".zst") as stream:
            return stream.read(most + 1), True
    if name == "br":
        return _brotli(body, most)
    raise ContentError(f"compressed as `{name[:40]}`")


def _inflated(body: bytes, name: str, most: int) -> tuple[bytes, bool]:
    found = b""
    code = _EITHER
    while True:
        decoder = zlib.decompressobj(code)
        try:
            found += decoder.decompress(body, most + 1 - len(found))
        except zlib.error:
            if name != "deflate" or code == _BARE:
                raise
            code = _BARE
            continue
        # Browsers leave out what follows and is no member.
        if not decoder.eof or len(found) > most or not decoder.unused_data.startswith(_GZIP):
            return found, decoder.eof
        body = decoder.unused_data


def _brotli(body: bytes, most: int) -> tuple[bytes, bool]:
    import brotli

    decoder = brotli.Decompressor()
    found = b""
    try:
        while True:
            piece = decoder.process(body, output_buffer_limit=_STEP_BYTES)
            body = b""
            found += piece
            if decoder.is_finished() or len(found) > most or (not piece and decoder.can_accept_more_data()):
                return found[: most + 1], decoder.is_finished()
    except brotli.error as error:
        raise ContentError(str(error)) from None
