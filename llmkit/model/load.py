"""Opening a Hugging Face model directory: check names and shapes first, then read each tensor once into its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn

from llmkit.errors import ModelError
from llmkit.model.checkpoint import FLOATS, StoredTensor, list_tensors
from llmkit.model.config import Head
from llmkit.model.facts import Stored, read_stored
from llmkit.model.families.base import Family, Transfer
from llmkit.model.initialization import initialize
from llmkit.model.layout import stored_shapes, to_ours
from llmkit.model.transformer import Transformer


def load_model(
    directory: str | Path,
    *,
    head: Head | None = None,
    labels: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Transformer:
    """Open a model directory, in evaluation mode.

    Args:
        directory: holds config.json and model.safetensors, or its shards and their index.
        head: another head than the stored one; it is initialised from `seed`, and `new_parameters` names its weights.
        labels: the classes of a classification head, where they are not the stored ones.
        dtype: of the weights; by default as stored.
        device: where to; by default the CPU.
        seed: of the parameters that the directory does not hold.

    Raises:
        ModelError: unknown architecture, unsupported settings, damaged files, missing, extra or misshapen weights.
    """
    path = Path(directory)
    stored = read_stored(path, head, None if labels is None else tuple(labels))
    tensors = _with_prefix(list_tensors(path), stored.family)
    config = stored.config
    if config.layers > len(tensors):
        raise ModelError(
            f"{config.layers} layers are announced, but only {len(tensors)} tensors stored", where=str(path)
        )
    with torch.device("meta"):
        model = Transformer(config)
    transfers = stored.family.transfers(config, [name for name, _ in model.named_parameters()])
    new = _new_parameters(stored, transfers, tensors)
    transfers = [transfer for transfer in transfers if not new.issuperset(transfer.ours)]
    _check(path, model, stored, transfers, tensors)

    chosen = dtype or _common_dtype(path, [_find(tensors, stored.family, name) for t in transfers for name in t.theirs])
    target = torch.device(device or "cpu")
    for transfer in transfers:
        for name, tensor in _read(model, stored.family, transfer, tensors):
            # A copy of its own: memory mapped from the file is aligned otherwise, and rounding depends on alignment.
            _set_parameter(model, name, torch.empty(tensor.shape, dtype=chosen, device=target).copy_(tensor))
    for name in sorted(new):
        shape = model.get_parameter(name).shape
        _set_parameter(model, name, torch.empty(shape, dtype=chosen, device=target))
    model.tie_weights()
    if model.rotary is not None:
        model.rotary.reset(target)
    initialize(model, seed, new)
    model.new_parameters = tuple(sorted(new))
    return model.eval()


def _with_prefix(tensors: Mapping[str, StoredTensor], family: Family) -> dict[str, StoredTensor]:
    """Names as in a checkpoint with a head; bodies saved alone leave the prefix out."""
    if any(name.startswith(family.prefix) for name in tensors):
        return dict(tensors)
    return {family.prefix + name: tensor for name, tensor in tensors.items()}


def _new_parameters(stored: Stored, transfers: Sequence[Transfer], tensors: Mapping[str, StoredTensor]) -> set[str]:
    """The head's parameters that a checkpoint of another head, or of none, does not hold.

    A replaced head keeps what fits (BERT's pooler) but not its final map, whose outputs mean something else.
    """
    if stored.head == stored.config.head and stored.labels == stored.config.labels:
        return set()
    final = ("head.score.", "head.projection.")
    return {
        name
        for transfer in transfers
        for name in transfer.ours
        if name.startswith("head.") and (name.startswith(final) or transfer.theirs[0] not in tensors)
    }


def _find(tensors: Mapping[str, StoredTensor], family: Family, name: str) -> StoredTensor:
    alias = family.aliases.get(name, name)
    return tensors.get(alias) or tensors[name]


def _check(
    path: Path,
    model: Transformer,
    stored: Stored,
    transfers: Sequence[Transfer],
    tensors: Mapping[str, StoredTensor],
) -> None:
    """Refuse a directory whose tensors are not exactly the model's, naming them."""
    family = stored.family
    wanted = {name for transfer in transfers for name in transfer.theirs}
    accepted = wanted | {family.aliases[name] for name in wanted if name in family.aliases}
    present = tensors.keys() | {name for name, alias in family.aliases.items() if alias in tensors}
    missing = sorted(wanted - present)
    extra = sorted(name for name in tensors.keys() - accepted if not _may_be_left(name, stored))
    problems = [f"missing {name}" for name in missing] + [f"unexpected {name}" for name in extra]
    for transfer in transfers:
        if not set(transfer.theirs) & set(missing):
            problems += _misshapen(model, family, transfer, tensors)
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise ModelError(f"the weights are not those of its config.json: {shown}", where=str(path))


def _may_be_left(name: str, stored: Stored) -> bool:
    """Whether a tensor may go unread: no weight of the model, a tied copy, or part of a head that was replaced."""
    family = stored.family
    if any(fnmatch(name, pattern) for pattern in family.ignored):
        return True
    heads = [theirs for weight in family.weights if weight.ours[0].startswith("head.") for theirs in weight.theirs]
    replaced = stored.head != stored.config.head or stored.labels != stored.config.labels
    tied = ("head.projection", "head.projection.weight") if stored.config.tie_embeddings else ()
    left = [theirs for weight in family.weights if weight.ours[0] in tied for theirs in weight.theirs]
    left += heads + list(family.aliases.values()) if replaced else []
    return any(name == known or name.rpartition(".")[0] == known for known in left)


def _misshapen(
    model: Transformer, family: Family, transfer: Transfer, tensors: Mapping[str, StoredTensor]
) -> list[str]:
    expected = stored_shapes(transfer, [tuple(model.get_parameter(name).shape) for name in transfer.ours])
    found = [(name, _find(tensors, family, name).shape) for name in transfer.theirs]
    return [
        f"{name} has shape {list(shape)}, not {list(wanted)}"
        for (name, shape), wanted in zip(found, expected, strict=True)
        if shape != wanted
    ]


def _common_dtype(path: Path, tensors: Sequence[StoredTensor]) -> torch.dtype:
    """The data type that holds all the tensors' values."""
    unknown = sorted({tensor.dtype for tensor in tensors} - FLOATS.keys())
    if unknown:
        raise ModelError(f"weights of type {', '.join(unknown)} are not supported", where=str(path))
    chosen = FLOATS[tensors[0].dtype]
    for tensor in tensors:
        chosen = torch.promote_types(chosen, FLOATS[tensor.dtype])
    return chosen


def _read(
    model: Transformer, family: Family, transfer: Transfer, tensors: Mapping[str, StoredTensor]
) -> list[tuple[str, Tensor]]:
    """The model's tensors that one transfer makes, as (name, tensor)."""
    parts = [_find(tensors, family, name).read() for name in transfer.theirs]
    shapes = [tuple(model.get_parameter(name).shape) for name in transfer.ours]
    return list(zip(transfer.ours, to_ours(transfer, parts, shapes), strict=True))


def _set_parameter(model: Transformer, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, nn.Parameter(tensor))
