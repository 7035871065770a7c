"""Reading compressed files: gzip, bzip2 and xz member after member, zstd; within bounds."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol, cast

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_INPUT_BYTES = 1 << 17
_BUFFER_BYTES = 1 << 18
_STEP_BYTES = 1 << 12
"""The decoder of zstd keeps none of a step in which it meets damage."""
_XZ_BYTES = 1 << 28
"""Memory that an xz file may ask for; `xz -9` asks for 65 MiB."""
_FREE_BYTES = 1 << 26
_MOST_TIMES = 1000
"""Text never shrinks to a thousandth; what does so was made to fill a disk."""


class ExpansionError(OSError):
    """A file grows without end when it is decompressed."""


def decompressed(stream: BinaryIO, ending: str) -> BinaryIO:
    """A stream of what a compressed stream holds.

    Args:
        stream: the compressed bytes; closed together with the result.
        ending: a name of `COMPRESSIONS`.

    Returns:
        a stream that raises, where the damage is reached: `EOFError` (the file is cut off), `OSError`, `zlib.error` or
        `lzma.LZMAError` (damaged), `ExpansionError` (64 MiB and a thousand times as long as what it was made of).
    """
    raw: io.RawIOBase = _Zstd(stream) if ending == ".zst" else Members(stream, ending)
    return io.BufferedReader(raw, _BUFFER_BYTES)


class _Decoder(Protocol):
    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decoder with the interface of the others."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


_DECODERS: dict[str, Callable[[], Any]] = {
    ".gz": _Gzip,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(memlimit=_XZ_BYTES),
}


class Members(io.RawIOBase):
    """What the members of a compressed stream hold, one after another. A read ends where a member does.

    Args:
        stream: compressed bytes, beginning with a member.
        ending: ".gz", ".bz2" or ".xz".
        position: where in its file the stream begins.
    """

    def __init__(self, stream: BinaryIO, ending: str, position: int = 0) -> None:
        super().__init__()
        self._stream = stream
        self._new: Callable[[], _Decoder] = _DECODERS[ending]
        self._decoder: _Decoder | None = None
        self._pending = b""
        self._position = position
        self._consumed = 0
        self._produced = 0
        self.member = position
        """Where in the file the member begins that was read last."""

    def readable(self) -> bool:
        """It is read only."""
        return True

    def close(self) -> None:
        """Close the file below as well."""
        if not self.closed:
            self._stream.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, or part of it; 0 at the end."""
        room = len(memoryview(buffer).cast("B"))
        data = b""
        while not data:
            if self._decoder is None and not self._begin():
                return 0
            data = self._more(room)
        self._produced += len(data)
        if self._produced > _FREE_BYTES + _MOST_TIMES * self._consumed:
            raise ExpansionError(_expands(self._produced))
        memoryview(buffer).cast("B")[: len(data)] = data
        return len(data)

    def _begin(self) -> bool:
        """Open the next member; False at the end of the stream. Zeros between members are padding."""
        while True:
            self._pending = self._pending.lstrip(b"\0") if self._consumed else self._pending
            if self._pending:
                break
            if not self._fill():
                return False
        self.member = self._position - len(self._pending)
        self._decoder = self._new()
        return True

    def _more(self, room: int) -> bytes:
        decoder = self._decoder
        assert decoder is not None
        if decoder.needs_input and not self._pending:
            self._fill()
        pending, self._pending = self._pending, b""
        # Without input, what the decoder still holds; where that is nothing, the file is cut off.
        data = decoder.decompress(pending, room)
        if decoder.eof:
            self._pending = decoder.unused_data
            self._decoder = None
        elif not pending and not data and decoder.needs_input:
            raise EOFError("the compressed data are cut off")
        return data

    def _fill(self) -> bool:
        self._pending = self._stream.read(_INPUT_BYTES)
        self._position += len(self._pending)
        self._consumed += len(self._pending)
        return bool(self._pending)


class _Zstd(io.RawIOBase):
    """What the frames of a zstd stream hold."""

    def __init__(self, stream: BinaryIO) -> None:
        import pyarrow as pa

        super().__init__()
        self._stream = _Counted(stream)
        self._decoded = pa.CompressedInputStream(pa.PythonFile(self._stream, mode="r"), "zstd")
        self._produced = 0
        self._damage: OSError | None = None

    def readable(self) -> bool:
        """It is read only."""
        return True

    def close(self) -> None:
        """Close the file below as well."""
        if not self.closed:
            self._decoded.close()
            self._stream.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._some(len(view))
        self._produced += len(data)
        if self._produced > _FREE_BYTES + _MOST_TIMES * self._stream.count:
            raise ExpansionError(_expands(self._produced))
        view[: len(data)] = data
        return len(data)

    def _some(self, room: int) -> bytes:
        """As much as there is room for; what came before damage is given before it raises."""
        if self._damage is not None:
            raise self._damage
        pieces: list[bytes] = []
        try:
            while room > 0 and (piece := self._decoded.read(min(room, _STEP_BYTES))):
                pieces.append(piece)
                room -= len(piece)
        except OSError as error:
            if not pieces:
                raise
            self._damage = error
        return b"".join(pieces)


class _Counted(io.RawIOBase):
    """Counts the bytes that are read of a stream."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self.count = 0

    def readable(self) -> bool:
        """It is read only."""
        return True

    def close(self) -> None:
        """Close the file below as well."""
        if not self.closed:
            self._stream.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        found = cast(Any, self._stream).readinto(buffer)
        self.count += found
        return int(found)


def _expands(produced: int) -> str:
    return f"it expands to {produced:,} bytes and on, more than {_MOST_TIMES:,} times what was read of it"
