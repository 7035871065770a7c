"""Files of safetensors as streams: written with their sha256 reckoned on the way, and read by rows from anywhere.

The format (https://huggingface.co/docs/safetensors): the length of the header as 8 bytes, the header as JSON with type,
shape and place of each tensor, and the tensors' bytes in little-endian order one after the other.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of tensors by the names that the format gives them."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""The names of these types."""

_PIECE = 1 << 24


class HashedStream:
    """Writes to a stream and keeps count.

    Args:
        stream: to write to.
        go_on: called before each piece; raises an error to end the writing.

    Attributes:
        size: bytes written.
        sha256: of these.
    """

    def __init__(self, stream: BinaryIO, go_on: Callable[[], None] = lambda: None) -> None:
        self._stream, self._go_on = stream, go_on
        self.size, self.sha256 = 0, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        """Write all of it."""
        for start in range(0, len(data), _PIECE):
            self._go_on()
            piece = data[start : start + _PIECE]
            self._stream.write(piece)
            self.sha256.update(piece)
        self.size += len(data)


def write_tensors(stream: HashedStream, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of safetensors; tensors may be anywhere and are copied to the CPU one at a time."""
    # Wide types first, so that every tensor begins at a multiple of its items' size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little"))
    stream.write(text)
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            stream.write(flat.view(torch.uint8).numpy().data)


class TensorFile:
    """An opened file of safetensors.

    Args:
        stream: of the file, at its start; it can be sought.

    Raises:
        ValueError: this is no file of safetensors.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        length = int.from_bytes(stream.read(8), "little")
        self._entries: dict[str, Any] = json.loads(stream.read(length))
        self._start = 8 + length

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The rows from `start` to before `stop` along the first dimension of a tensor; by default all of it."""
        entry = self._entries[name]
        dtype, shape = DTYPES[entry["dtype"]], list(entry["shape"])
        begin = entry["data_offsets"][0]
        if shape:
            last = shape[0] if stop is None else stop
            begin += start * math.prod(shape[1:]) * dtype.itemsize
            shape[0] = last - start
        data = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
        self._stream.seek(self._start + begin)
        view = data.numpy().data
        while len(view):
            count = self._stream.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise ValueError(f"the file ends within the tensor {name}")
            view = view[count:]
        return data.view(dtype).reshape(shape)
