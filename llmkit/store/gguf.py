"""The header of a GGUF file: its metadata, and the names, shapes, types and places of its tensors. No torch, no numpy.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), all numbers little-endian:

    "GGUF"  version u32  tensor_count u64  kv_count u64
    kv_count x (key string, type u32, value)
    tensor_count x (name string, dimensions u32, each dimension u64 with the innermost first, type u32, offset u64)
    padding to the alignment, then the tensors' bytes, each at data start + offset

The file is not trusted. Every length is held against the bytes that are left before anything is allocated, numbers stay
packed as the file has them, and tensors must lie inside the file, aligned, without overlap.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from llmkit.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SUFFIX = ".gguf"
DEFAULT_ALIGNMENT = 32

MAX_KEYS = 1 << 16
MAX_STRINGS = 1 << 22
"""Most strings in one header: vocabulary and merges of the largest models have a million."""
MAX_HEADER = 1 << 28
"""Most bytes of a header: those of the largest vocabularies have some ten million."""
MAX_TENSORS = 1 << 20
MAX_DIMENSIONS = 4
MAX_NAME = 1 << 16

# Codes of metadata values: 0-7 and 10-12 are numbers, whose array codes these are; bool is read apart.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies.

    Attributes:
        name: as in the file, such as "blk.0.attn_q.weight".
        shape: outermost dimension first, in values, as torch and numpy have it.
        type: name of the data type, such as "Q4_1".
        offset: of the first byte in the file.
        size: in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int


@dataclass(frozen=True)
class GGUFFile:
    """The header of a file: strings, numbers and truth values by key; lists of strings, and `array`s of the others."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]

    @property
    def architecture(self) -> str:
        """Such as "llama"; raises ModelError where it is not given."""
        return str(self.get("general.architecture", str))

    def get(self, key: str, kind: type, default: Any = ...) -> Any:
        """A value of the metadata.

        Args:
            key: its name.
            kind: bool, int, float (whole numbers are fine), str, or list (of any values).
            default: where it is absent; refused if there is none.

        Raises:
            ModelError: it is absent or of another kind.
        """
        value = self.metadata.get(key)
        if value is None:
            if default is ...:
                raise ModelError(f"the metadata lacks {key}.", where=str(self.path))
            return default
        accepted = {float: (int, float), list: (list, array)}.get(kind, (kind,))
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ModelError(f"{key} must be of kind {kind.__name__}, not {_shown(value)}.", where=str(self.path))
        return value


def read_gguf(path: str | Path) -> GGUFFile:
    """Read and check the header of a GGUF file.

    Raises:
        ModelError: no GGUF file, of another version, truncated, or inconsistent.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            return _Reader(stream, path).file()
    except OSError as error:
        raise ModelError(f"the file cannot be read: {error.strerror or error}.", where=str(path)) from None


def tensor_types() -> dict[int, tuple[str, int, int]]:
    """Data types by their number in the file: name, values in a block, bytes of a block; those that `gguf` reads."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): (kind.name, values, size) for kind, (values, size) in GGML_QUANT_SIZES.items()}


class _Reader:
    """Reads values one after the other; every length is checked against what is left of the file first."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self.stream = stream
        self.path = path
        self.left = self.size = path.stat().st_size
        self.strings = 0

    def error(self, message: str, hint: str | None = None) -> ModelError:
        return ModelError(message, where=str(self.path), hint=hint)

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise self.error(
                f"the file ends inside {what}: {count} bytes wanted, {self.left} left.", "Is it wholly downloaded?"
            )
        if self.size - self.left + count > MAX_HEADER:
            raise self.error(f"the header exceeds {MAX_HEADER} bytes in {what}.")
        data = self.stream.read(count)
        self.left -= len(data)
        if len(data) != count:
            raise self.error(f"the file ends inside {what}.")
        return data

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def string(self, what: str) -> str:
        self.strings += 1
        if self.strings > MAX_STRINGS:
            raise self.error(f"the header has more than {MAX_STRINGS} strings.")
        data = self.take(self.u64(what), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(f"{what} is no valid UTF-8.") from None

    def name(self, what: str) -> str:
        text = self.string(what)
        if not text or len(text) > MAX_NAME:
            raise self.error(f"{what} has {len(text)} characters.")
        return text

    def file(self) -> GGUFFile:
        if self.size < 24 or self.take(4, "the magic number") != MAGIC:
            raise self.error("this is no GGUF file.")
        version = self.u32("the version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            kind = "a big-endian GGUF file" if swapped else f"GGUF version {version}"
            raise self.error(f"{kind} is not supported.", "Write it anew with a current converter.")
        tensors, keys = self.u64("the number of tensors"), self.u64("the number of keys")
        for count, limit, what in ((keys, MAX_KEYS, "keys"), (tensors, MAX_TENSORS, "tensors")):
            if count > limit:
                raise self.error(f"the header announces {count} {what}; at most {limit} are read.")
        metadata = self.metadata(keys)
        entries = self.tensors(tensors, self.alignment(metadata))
        return GGUFFile(self.path, metadata, entries)

    def metadata(self, count: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for index in range(count):
            key = self.name(f"the name of key {index}")
            if key in found:
                raise self.error(f"the key {key} occurs twice.")
            found[key] = self.value(self.u32(f"the type of {key}"), f"the value of {key}")
        return found

    def value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what)
        number = self.numbers(kind, 1, what)[0]
        return bool(number) if kind == _BOOL else number

    def array(self, what: str) -> Any:
        kind, count = self.u32(what), self.u64(what)
        if kind == _ARRAY:
            raise self.error(f"{what} is a list of lists, which no GGUF file has.")
        if kind != _STRING:
            return self.numbers(kind, count, what)
        if count > self.left // 8:
            raise self.error(f"the file ends inside {what}: {count} strings are announced.")
        return [self.string(what) for _ in range(count)]

    def numbers(self, kind: int, count: int, what: str) -> Any:
        code = "B" if kind == _BOOL else _NUMBERS.get(kind)
        if code is None:
            raise self.error(f"{what} has the unknown type {kind}.")
        found = array(code)
        # `array` reads in the machine's order; sizes of its codes are those of the format on every platform of ours.
        found.frombytes(self.take(count * struct.calcsize(f"<{code}"), what))
        if sys.byteorder == "big":
            found.byteswap()
        return found

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 20 or value & (value - 1):
            raise self.error(f"general.alignment must be a power of two, not {_shown(value)}.")
        return value

    def tensors(self, count: int, alignment: int) -> dict[str, TensorEntry]:
        types = tensor_types()
        found: dict[str, TensorEntry] = {}
        for index in range(count):
            name = self.name(f"the name of tensor {index}")
            if name in found:
                raise self.error(f"the tensor {name} occurs twice.")
            found[name] = self.tensor(name, types)
        position = self.size - self.left
        start = -(-position // alignment) * alignment
        placed = {name: self.placed(entry, start, alignment) for name, entry in found.items()}
        end = start
        for entry in sorted(placed.values(), key=lambda entry: entry.offset):
            if entry.offset < end:
                raise self.error(f"the tensor {entry.name} overlaps another.")
            end = entry.offset + entry.size
        return placed

    def tensor(self, name: str, types: Mapping[int, tuple[str, int, int]]) -> TensorEntry:
        dimensions = self.u32(f"the shape of {name}")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.error(f"the tensor {name} has {dimensions} dimensions.")
        shape = tuple(self.u64(f"the shape of {name}") for _ in range(dimensions))[::-1]
        kind, offset = self.u32(f"the type of {name}"), self.u64(f"the offset of {name}")
        if kind not in types:
            raise self.error(f"the tensor {name} has the unknown type {kind}.", "Is a newer `gguf` package at hand?")
        type_name, block, bytes_of_block = types[kind]
        if min(shape) < 1 or shape[-1] % block:
            raise self.error(f"the tensor {name} of type {type_name} cannot have the shape {list(shape)}.")
        return TensorEntry(name, shape, type_name, offset, prod(shape) // block * bytes_of_block)

    def placed(self, entry: TensorEntry, start: int, alignment: int) -> TensorEntry:
        if entry.offset % alignment:
            raise self.error(f"the tensor {entry.name} is not aligned to {alignment} bytes.")
        offset = start + entry.offset
        if offset + entry.size > self.size:
            raise self.error(
                f"the tensor {entry.name} ends at byte {offset + entry.size}, the file at {self.size}.",
                "Is it wholly downloaded?",
            )
        return TensorEntry(entry.name, entry.shape, entry.type, offset, entry.size)


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float) else type(value).__name__
    return text if len(text) <= 40 else text[:37] + "..."
