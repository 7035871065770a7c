"""The tensors of a Hugging Face directory by name: shapes and types first, numbers on demand.

Safetensors and the older pytorch_model.bin, each in one file or in shards with an index, all give `StoredTensor`s; so
can any other format. Safetensors are taken where both are there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from llmkit.errors import ModelError
from llmkit.model.facts import read_json
from llmkit.model.mapped import list_pickled, list_safetensors
from llmkit.model.tensors import StoredTensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"

# Names of norms in checkpoints older than transformers 1.0.
_OLD_SUFFIXES = {".gamma": ".weight", ".beta": ".bias"}
_SHARD = re.compile(r"[A-Za-z0-9_.-]{1,200}")


def list_tensors(directory: Path) -> dict[str, StoredTensor]:
    """All tensors of a model directory, from the headers of its files.

    Raises:
        ModelError: there are no weights, a file is damaged or holds more than tensors, a shard is missing or elsewhere.
    """
    formats = ((WEIGHTS, INDEX, list_safetensors), (PICKLED, PICKLED_INDEX, list_pickled))
    for single, index, list_file in formats:
        if (directory / single).is_file():
            return _collect([directory / single], list_file)
        if (directory / index).is_file():
            return _list_shards(directory, index, Path(single).suffix, list_file)
    raise ModelError(
        f"there is no {WEIGHTS}.",
        where=str(directory),
        hint=f"Weights are read from {WEIGHTS} or {PICKLED}, in one file or in shards with an index.",
    )


def _list_shards(
    directory: Path, index_name: str, suffix: str, list_file: Callable[[Path], Iterable[StoredTensor]]
) -> dict[str, StoredTensor]:
    where = str(directory / index_name)
    index = read_json(directory / index_name).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(shard, str) for shard in index.values()):
        raise ModelError("weight_map must map tensor names to file names", where=where)
    shards = sorted(set(index.values()))
    for shard in shards:
        if not _SHARD.fullmatch(shard) or not shard.endswith(suffix):
            raise ModelError(f"{shard[:200]!r} is not the name of a {suffix} file here", where=where)
        if not (directory / shard).is_file():
            raise ModelError(f"shard {shard} is missing", where=str(directory))
    found = _collect([directory / shard for shard in shards], list_file)
    absent = sorted(_current_name(name) for name in index if _current_name(name) not in found)
    if absent:
        raise ModelError(f"no shard holds {', '.join(name[:200] for name in absent[:5])}", where=where)
    return found


def _collect(files: Iterable[Path], list_file: Callable[[Path], Iterable[StoredTensor]]) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in list_file(file):
            name = _current_name(tensor.name)
            if name in found:
                raise ModelError(f"{name} is stored twice", where=str(file))
            found[name] = replace(tensor, name=name)
    return found


def _current_name(name: str) -> str:
    for old, new in _OLD_SUFFIXES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
