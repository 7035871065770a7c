"""Saving a model as a Hugging Face directory that transformers and others open without conversion."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmkit.model.checkpoint import INDEX, WEIGHTS
from llmkit.model.facts import GENERATION, write_json
from llmkit.model.families import FAMILIES
from llmkit.model.families.base import Family, Transfer, write_ids
from llmkit.model.layout import stored_shapes, to_theirs
from llmkit.model.plain import PlainWeight, plain_weights
from llmkit.model.sentences import MODULES, embedding_files
from llmkit.model.tensors import KINDS, StoredTensor, write_safetensors
from llmkit.model.transformer import Transformer

MAX_SHARD_SIZE = 5_000_000_000
"""Bytes of weights in one file, by default: what hubs and file systems take without trouble."""

_SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")


def save_model(
    model: Transformer,
    directory: str | Path,
    *,
    dtype: torch.dtype | None = None,
    generation: Mapping[str, Any] | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Write config.json, the weights as safetensors and what goes with the head.

    That is generation_config.json for a causal language model, and for an embedding model the files by which
    sentence-transformers opens it.

    The bytes depend on the weights and the settings alone. Tied weights are written once. Beyond the model, at most one
    shard is in memory.

    Args:
        model: what to save; any device.
        directory: where to; made if it is missing. Weights that lie there are replaced.
        dtype: of the weights in the file; by default the model's.
        generation: settings for generation_config.json beyond the special tokens, such as {"temperature": 0.7}; what
            the opened checkpoint said (`model.generation_settings`) is kept where they are silent.
        max_shard_size: most bytes of weights in a file; what is larger is written as shards with an index. A single
            larger tensor has a file of its own.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    tensors = list(export_tensors(model, dtype).values())
    write_tensors(tensors, path, max_shard_size)
    settings = FAMILIES[model.config.family].write_config(model.config)
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors}
    settings["dtype"] = kinds.pop() if len(kinds) == 1 else "float32"
    write_json(path / "config.json", settings)
    if model.config.head == "embedding":
        for name, content in embedding_files(model.config).items():
            (path / name).parent.mkdir(exist_ok=True)
            write_json(path / name, content)
    else:
        # Of an earlier model, it would make an embedding model of this one.
        (path / MODULES).unlink(missing_ok=True)
    if model.config.head == "causal-lm":
        ids = {
            "pad_token_id": model.config.pad_id,
            "bos_token_id": model.config.bos_id,
            "eos_token_id": write_ids(model.config.eos_ids),
        }
        known = {name: value for name, value in ids.items() if value is not None}
        write_json(path / GENERATION, {**model.generation_settings, **known, **(generation or {})})


def export_tensors(model: Transformer, dtype: torch.dtype | None = None) -> dict[str, StoredTensor]:
    """The weights under the names and in the layout of the reference; each is laid out when it is read, on the CPU.

    Adapters are merged, and quantized maps dense: what is saved is what the model does, in any tool's hands.

    Args:
        model: what to export.
        dtype: of what is read; by default the model's.
    """
    family = FAMILIES[model.config.family]
    exported: dict[str, StoredTensor] = {}
    for tensor in lay_out(model, family, dtype):
        exported[tensor.name] = tensor
        if tensor.name in family.aliases:
            alias = family.aliases[tensor.name]
            exported[alias] = _copied(tensor, alias)
    own, wanted = family.prefix, family.stored_prefix(model.config.head)
    if own == wanted:
        return exported
    renamed = {name: wanted + name.removeprefix(own) if name.startswith(own) else name for name in exported}
    return {renamed[name]: replace(tensor, name=renamed[name]) for name, tensor in exported.items()}


def lay_out(model: Transformer, family: Family, dtype: torch.dtype | None = None) -> Iterable[StoredTensor]:
    """`export_tensors` under the names of any family's table, without second names and prefixes."""
    weights = plain_weights(model)
    for transfer in family.transfers(model.config, list(weights)):
        yield from _export(transfer, [weights[name] for name in transfer.ours], dtype)


def _export(transfer: Transfer, ours: Sequence[PlainWeight], dtype: torch.dtype | None) -> Iterable[StoredTensor]:
    if transfer.experts:
        one, count = transfer.of_one_expert(), len(transfer.theirs) // transfer.experts
        for expert in range(transfer.experts):
            names = transfer.theirs[expert * count : (expert + 1) * count]
            yield from _laid_out(one, names, [each.part(expert) for each in ours], dtype)
    else:
        yield from _laid_out(transfer, transfer.theirs, ours, dtype)


def _laid_out(
    transfer: Transfer, names: Sequence[str], ours: Sequence[PlainWeight], dtype: torch.dtype | None
) -> Iterable[StoredTensor]:
    chosen = dtype or ours[0].dtype
    shapes = stored_shapes(transfer, [part.shape for part in ours])
    for index, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        yield StoredTensor(name, shape, KINDS[chosen], chosen, partial(_rows, transfer, ours, chosen, index))


def _rows(
    transfer: Transfer, ours: Sequence[PlainWeight], dtype: torch.dtype, index: int, start: int, stop: int | None
) -> Tensor:
    parts = [part.read().to(device="cpu", dtype=dtype) for part in ours]
    return to_theirs(transfer, parts)[index][start:stop]


def _copied(tensor: StoredTensor, name: str) -> StoredTensor:
    # A copy: a file of safetensors holds no two tensors in the same memory.
    copied: Callable[[int, int | None], Tensor] = lambda start, stop: tensor.rows(start, stop).clone()  # noqa: E731
    return StoredTensor(name, tensor.shape, tensor.kind, tensor.dtype, copied)


def write_tensors(tensors: Sequence[StoredTensor], directory: Path, max_shard_size: int) -> None:
    """Write tensors as model.safetensors, or as shards with their index; older weights in the folder are removed."""
    shards = _split(tensors, max_shard_size)
    count = len(shards)
    names = [WEIGHTS] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors({tensor.name: tensor.read() for tensor in shard}, directory / name, {"format": "pt"})
    written = set(names)
    if count > 1:
        total = {
            "total_size": sum(map(_size, tensors)),
            "total_parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        }
        placed = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        write_json(directory / INDEX, {"metadata": total, "weight_map": placed})
        written.add(INDEX)
    for file in directory.iterdir():
        stale = file.name in (WEIGHTS, INDEX) or _SHARD.fullmatch(file.name)
        if stale and file.name not in written:
            file.unlink()


def _split(tensors: Sequence[StoredTensor], max_shard_size: int) -> list[list[StoredTensor]]:
    """Tensors in their order, in groups of at most so many bytes, and at least one tensor."""
    shards: list[list[StoredTensor]] = []
    room = 0
    for tensor in tensors:
        if not shards or _size(tensor) > room:
            shards.append([])
            room = max_shard_size
        shards[-1].append(tensor)
        room -= _size(tensor)
    return shards


def _size(tensor: StoredTensor) -> int:
    assert tensor.dtype is not None
    return math.prod(tensor.shape) * tensor.dtype.itemsize
