"""Tensors in files that are mapped into memory: safetensors, and the pickles of PyTorch.

Pages of a mapped file that were read count as the process's memory for as long as the mapping lasts. So a file is
mapped anew whenever a share of it has been read, and reading a model takes hardly more memory than the model.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmkit.errors import ModelError
from llmkit.model.tensors import FLOATS, KINDS, StoredTensor

_SHARE = 25
_LEAST = 8 << 20
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
# Tied weights share memory, so that the tensors of a file can be larger than it in sum, but not by much.
_MOST_SHARED = 8

Opened = TypeVar("Opened")


class _Mapping(Generic[Opened]):
    """A mapped file, opened anew once more than 1/25 of it has been read.

    Args:
        path: the file.
        open_file: maps it.
    """

    def __init__(self, path: Path, open_file: Callable[[Path], Opened]) -> None:
        self._path, self._open = path, open_file
        self._limit = max(_LEAST, path.stat().st_size // _SHARE)
        self._opened: Opened | None = None
        self._read = 0

    def get(self, read: Callable[[Opened], Tensor]) -> Tensor:
        """What `read` takes from the file."""
        if self._opened is None:
            self._opened, self._read = self._open(self._path), 0
        tensor = read(self._opened)
        self._read += tensor.nbytes
        if self._read > self._limit:
            self._opened = None
        return tensor


def list_safetensors(path: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file, as its header names them; raises ModelError where it is damaged."""
    file = _open_safetensors(path)
    mapping = _Mapping(path, _open_safetensors)
    found = []
    for name in file.keys():  # noqa: SIM118 - not a dict
        header = file.get_slice(name)
        shape, kind = tuple(header.get_shape()), str(header.get_dtype())
        found.append(StoredTensor(name, shape, kind, FLOATS.get(kind), _safetensors_rows(mapping, name, shape)))
    return found


def _safetensors_rows(mapping: _Mapping[Any], name: str, shape: tuple[int, ...]) -> Callable[[int, int | None], Tensor]:
    def rows(start: int, stop: int | None) -> Tensor:
        whole = not shape or (start == 0 and stop is None)
        return mapping.get(lambda file: file.get_tensor(name) if whole else file.get_slice(name)[start:stop])

    return rows


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise ModelError(f"damaged weights ({_short(error)})", where=str(path)) from None


def list_pickled(path: Path) -> list[StoredTensor]:
    """The tensors of a file that `torch.save` wrote of a state dict.

    It is read by `torch.load(weights_only=True)` alone, which knows tensors and plain containers and runs nothing else.
    A file of PyTorch before 1.6 cannot be mapped: it is read whole, and each tensor is freed with its `StoredTensor`.

    Raises:
        ModelError: the file is damaged or holds more than tensors.
    """
    mappable = zipfile.is_zipfile(path)
    if mappable:
        _refuse_compressed(path)
    tensors = _checked(_open_pickled(path, mmap=mappable), path)
    mapping = _Mapping(path, lambda file: _open_pickled(file, mmap=True))
    found = []
    for name, tensor in tensors.items():
        shape, kind = tuple(tensor.shape), KINDS.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
        rows = _pickled_rows(mapping, name) if mappable else _held_rows(tensor)
        found.append(StoredTensor(name, shape, kind, tensor.dtype if tensor.dtype in KINDS else None, rows))
    return found


def _pickled_rows(mapping: _Mapping[Any], name: str) -> Callable[[int, int | None], Tensor]:
    return lambda start, stop: mapping.get(lambda tensors: _rows(tensors[name].detach(), start, stop))


def _held_rows(tensor: Tensor) -> Callable[[int, int | None], Tensor]:
    return lambda start, stop: _rows(tensor.detach(), start, stop)


def _rows(tensor: Tensor, start: int, stop: int | None) -> Tensor:
    return tensor[start:stop] if tensor.ndim else tensor


def _refuse_compressed(path: Path) -> None:
    """PyTorch stores everything as it is; what is compressed could unfold to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"damaged weights ({_short(error)})", where=str(path)) from None
    if not stored:
        raise ModelError("damaged weights (compressed, as PyTorch never writes them)", where=str(path))


def _open_pickled(path: Path, *, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        named = _GLOBAL.search(str(error))
        problem = f"it holds {named.group(1)}, which is no tensor" if named else "it is no file of tensors"
        raise ModelError(
            f"damaged weights ({problem}; nothing in it was run).",
            where=str(path),
            hint="Ask their author for safetensors.",
        ) from None
    except Exception as error:  # a damaged pickle leads its reader into errors of any kind
        raise ModelError(f"damaged weights ({_short(error)})", where=str(path)) from None


def _checked(value: Any, path: Path) -> Mapping[str, Tensor]:
    """The file's content, refused where it is anything but named plain tensors that the file holds in full."""
    if not isinstance(value, Mapping):
        raise ModelError(f"a {type(value).__name__} is stored in place of named tensors", where=str(path))
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ModelError(f"{str(name)[:200]!r} is no named tensor", where=str(path))
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ModelError(f"{name[:200]} is no plain tensor", where=str(path))
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ModelError(f"{name[:200]} is larger than what is stored of it", where=str(path))
    if sum(tensor.nbytes for tensor in value.values()) > _MOST_SHARED * path.stat().st_size:
        raise ModelError("the tensors are larger than the file", where=str(path))
    return value


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
