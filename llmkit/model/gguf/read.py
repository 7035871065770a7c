"""The tensors of a GGUF file, as those of any other checkpoint: shapes first, rows dequantized on demand."""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmkit.errors import ModelError
from llmkit.model.config import Head, ModelConfig
from llmkit.model.facts import Stored
from llmkit.model.gguf.settings import architecture_of_file, stored_of_gguf
from llmkit.model.tensors import StoredTensor
from llmkit.store.gguf import GGUFFile, TensorEntry, read_gguf

CHUNK = 1 << 18
"""Values dequantized at a time: a few megabytes of scratch memory, whatever the size of the tensor."""

_PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_MOST_FACTORS = 1 << 16
_ROTATED = re.compile(r"\.attn_[qk]\.")


def open_gguf(
    path: str | Path, head: Head | None = None, labels: Sequence[str] | None = None
) -> tuple[Stored, dict[str, StoredTensor]]:
    """A GGUF file as `llmkit.model.load` takes any checkpoint: what it says of its model, and its tensors by name.

    Quantized tensors come out as fp32, which holds what they stand for; norms and biases, which files keep in fp32
    whatever the type of their matrices, do not raise the type that a model is opened in by default.

    Raises:
        ModelError: damaged, of an unknown architecture, or of types that are no weights.
    """
    file = read_gguf(path)
    parts = file.get("split.count", int, 1)
    if parts > 1:
        raise ModelError(
            f"this is one of {parts} parts of a model.", where=str(path), hint="Join them with llama.cpp's gguf-split."
        )
    factors = {name: _factors(file, name) for name in _FACTORS if name in file.tensors}
    stored = stored_of_gguf(file, factors, head, labels)
    permuted = architecture_of_file(file).permuted
    tensors = {entry.name: _stored(file, entry, stored.config, permuted) for entry in file.tensors.values()}
    return stored, tensors


def default_dtype(tensors: Sequence[StoredTensor]) -> torch.dtype:
    """The type that holds all matrices' values."""
    found = [tensor.dtype for tensor in tensors if len(tensor.shape) > 1 and tensor.dtype is not None]
    chosen = found[0] if found else torch.float32
    for dtype in found:
        chosen = torch.promote_types(chosen, dtype)
    return chosen


def readable(kind: str) -> bool:
    """Whether a tensor type holds weights that can be read."""
    from gguf.quants import _type_traits

    return kind in _PLAIN or kind in {known.name for known in _type_traits}


def _factors(file: GGUFFile, name: str) -> list[float]:
    entry = file.tensors[name]
    if prod(entry.shape) > _MOST_FACTORS or entry.type != "F32":
        raise ModelError(f"{name} is no table of rotary factors.", where=str(file.path))
    return [float(value) for value in _read_rows(file.path, entry, 0, entry.shape[0]).flatten()]


def _stored(file: GGUFFile, entry: TensorEntry, config: ModelConfig, permuted: bool) -> StoredTensor:
    dtype = _PLAIN.get(entry.type, torch.float32) if readable(entry.type) else None
    paired = permuted and rotated(entry.name) and entry.shape[0] % config.head_width == 0
    group = config.head_width if paired else 1
    offset = 1.0 if config.norm_offset and entry.name.endswith("_norm.weight") else 0.0

    def rows(start: int, stop: int | None) -> Tensor:
        first, last, _ = slice(start, stop).indices(entry.shape[0])
        if paired:
            low, high = first // group * group, -(-last // group) * group
            whole = unpermuted(_read_rows(file.path, entry, low, high), group)
            return whole[first - low : last - low]
        found = _read_rows(file.path, entry, first, last)
        return found - offset if offset else found

    return StoredTensor(entry.name, entry.shape, entry.type, dtype, rows)


def rotated(name: str) -> bool:
    """Whether a tensor makes queries or keys."""
    return _ROTATED.search(name) is not None


def unpermuted(rows: Tensor, head_width: int) -> Tensor:
    """Rows of query or key in halves of each head, from rows in pairs, as llama.cpp rotates them."""
    heads = rows.unflatten(0, (-1, head_width // 2, 2))
    unpaired: Tensor = heads.transpose(1, 2).reshape(rows.shape)
    return unpaired


def permuted_rows(rows: Tensor, head_width: int) -> Tensor:
    """The inverse of `unpermuted`."""
    heads = rows.unflatten(0, (-1, 2, head_width // 2))
    paired: Tensor = heads.transpose(1, 2).reshape(rows.shape)
    return paired


def _read_rows(path: Path, entry: TensorEntry, first: int, last: int) -> Tensor:
    """Rows `first` to before `last` of a tensor as numbers, dequantized some at a time."""
    if len(entry.shape) == 1:
        # The values of a block may be several rows of a vector, so it is read whole.
        return _decode(_bytes_at(path, entry.offset, entry.size), entry.type)[first:last]
    result = _scratch((last - first, *entry.shape[1:]), _PLAIN.get(entry.type, torch.float32))
    row_size = entry.size // entry.shape[0]
    step = max(CHUNK // prod(entry.shape[1:]), 1)
    for row in range(first, last, step):
        part = result[row - first : row - first + step]
        data = _bytes_at(path, entry.offset + row * row_size, len(part) * row_size)
        part.copy_(_decode(data, entry.type).view(part.shape))
    return result


def _scratch(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory that goes back to the system once it is let go.

    The C library's allocator would keep the holes that it leaves between the weights of the model being read.
    """
    size = prod(shape) * dtype.itemsize
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(shape) if size else torch.empty(shape, dtype=dtype)


def _bytes_at(path: Path, offset: int, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        data = np.fromfile(path, dtype=np.uint8, count=count, offset=offset)
    except OSError as error:
        raise ModelError(f"the file cannot be read: {error}.", where=str(path)) from None
    if len(data) != count:
        raise ModelError("the file has become shorter while it was read.", where=str(path))
    return data


def _decode(data: np.ndarray[Any, np.dtype[np.uint8]], kind: str) -> Tensor:
    plain = _PLAIN.get(kind)
    if plain is not None:
        return torch.from_numpy(data).view(plain)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    # Corrupt scales may be infinite; what they stand for is then not a number, which is no reason for a warning.
    with np.errstate(all="ignore"):
        values = dequantize(data, GGMLQuantizationType[kind])
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
