"""The tensors of a Hugging Face directory, single or sharded safetensors, by name: shapes first, bytes on demand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmkit.errors import ModelError
from llmkit.model.facts import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Data types of safetensors that hold weights as plain numbers."""

# Names of norms in checkpoints older than transformers 1.0.
_OLD_SUFFIXES = {".gamma": ".weight", ".beta": ".bias"}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and its shape and data type as the file's header says."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        """The tensor, on the CPU."""
        with _opened(self.file) as file:
            tensor: Tensor = file.get_tensor(self.name)
        return tensor


def list_tensors(directory: Path) -> dict[str, StoredTensor]:
    """All tensors of a model directory, from the headers of its files.

    Raises:
        ModelError: no safetensors, a damaged file, a shard missing or outside the directory.
    """
    if (directory / WEIGHTS).is_file():
        return _list_file(directory / WEIGHTS)
    if not (directory / INDEX).is_file():
        raise ModelError(
            f"there is no {WEIGHTS}",
            where=str(directory),
            hint="Pickled weights (pytorch_model.bin) are not opened; save them as safetensors.",
        )
    index = read_json(directory / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(shard, str) for shard in index.values()):
        raise ModelError("weight_map must map tensor names to file names", where=str(directory / INDEX))
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(index.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(f"{shard!r} is not the name of a safetensors file here", where=str(directory / INDEX))
        if not (directory / shard).is_file():
            raise ModelError(f"shard {shard} is missing", where=str(directory))
        found.update(_list_file(directory / shard))
    absent = sorted(_current_name(name) for name in index if _current_name(name) not in found)
    if absent:
        raise ModelError(f"no shard holds {', '.join(absent[:5])}", where=str(directory / INDEX))
    return found


def _list_file(path: Path) -> dict[str, StoredTensor]:
    with _opened(path) as file:
        stored = {}
        for name in file.keys():  # noqa: SIM118 - not a dict
            header = file.get_slice(name)
            shape = tuple(header.get_shape())
            stored[_current_name(name)] = StoredTensor(path, name, shape, str(header.get_dtype()))
        return stored


def _current_name(name: str) -> str:
    for old, new in _OLD_SUFFIXES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"damaged weights ({error})", where=str(path)) from None
