"""Opening a model: names and shapes are checked first, then each tensor is read in pieces into its place."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn

from llmkit.errors import ModelError
from llmkit.model.checkpoint import list_tensors
from llmkit.model.config import Head, ModelConfig
from llmkit.model.facts import Stored, read_stored
from llmkit.model.families.base import Family, Transfer
from llmkit.model.gguf.read import default_dtype, open_gguf
from llmkit.model.initialization import initialize
from llmkit.model.layout import stored_shapes, to_ours
from llmkit.model.packed import present
from llmkit.model.quantization.config import Quantization
from llmkit.model.quantization.quantize import quantize_output, quantize_parameter
from llmkit.model.rotary import Rotary
from llmkit.model.tensors import StoredTensor
from llmkit.model.transformer import Transformer
from llmkit.store.gguf import SUFFIX

_PIECE = 8 << 20
"""Bytes of a tensor that are read at a time."""


def load_model(
    directory: str | Path,
    *,
    head: Head | None = None,
    labels: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantize: Quantization | None = None,
    quantize_head: bool = True,
    seed: int = 0,
) -> Transformer:
    """Open a model directory or a GGUF file, in evaluation mode.

    Args:
        directory: holds config.json and weights as safetensors or pytorch_model.bin, in one file or in shards; or a
            file that ends in ".gguf", whose quantized weights are opened in fp32 by default.
        head: another head than the stored one; it is initialised from `seed`, and `new_parameters` names its weights.
        labels: the classes of a classification head, where they are not the stored ones.
        dtype: of the weights; by default as stored.
        device: where to; by default the CPU.
        quantize: keep the weights of linear maps in fewer bits, each from the moment that it is read.
        quantize_head: with that, a language model's output map too; see `llmkit.model.quantization.quantize`.
        seed: of the parameters that the directory does not hold.

    Raises:
        ModelError: unknown architecture, unsupported settings, damaged files, missing, extra or misshapen weights.
    """
    path = Path(directory)
    if path.suffix == SUFFIX:
        stored, tensors = open_gguf(path, head, labels)
        dtype = dtype or default_dtype(list(tensors.values()))
    else:
        stored = read_stored(path, head, None if labels is None else tuple(labels))
        tensors = list_tensors(path)
    model = assemble(
        stored,
        tensors,
        where=str(path),
        dtype=dtype,
        device=device,
        quantize=quantize,
        quantize_head=quantize_head,
        seed=seed,
    )
    model.generation_settings = stored.generation
    return model


def assemble(
    stored: Stored,
    tensors: dict[str, StoredTensor],
    *,
    where: str,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantize: Quantization | None = None,
    quantize_head: bool = True,
    seed: int = 0,
) -> Transformer:
    """The model of a checkpoint of any format, in evaluation mode.

    Names and shapes are checked before a number is read; then each tensor is read in pieces into its place, in its data
    type and on its device. Peak memory is that of the model and a few pieces.

    Args:
        stored: what the model is.
        tensors: the checkpoint's, named as its family names them in a Hugging Face directory; emptied as they are read.
        where: the place of the checkpoint, for messages.
        dtype, device, quantize, quantize_head, seed: as for `load_model`.

    Raises:
        ModelError: missing, extra or misshapen weights, or such of a type that holds no plain numbers.
    """
    _set_prefix(tensors, stored)
    config = stored.config
    present(tensors, stored.family, config.experts)
    _refuse_announcements(config, stored.family, tensors, where)
    model = _on_meta(config, where)
    transfers = stored.family.transfers(config, [name for name, _ in model.named_parameters()])
    new = _new_parameters(stored, transfers, tensors)
    transfers = [transfer for transfer in transfers if not new.issuperset(transfer.ours)]
    _check(where, model, stored, transfers, tensors)

    chosen = dtype or _common_dtype([_find(tensors, stored.family, name) for t in transfers for name in t.theirs])
    target = torch.device(device or "cpu")
    for transfer in transfers:
        sources = [_find(tensors, stored.family, name) for name in transfer.theirs]
        # Memory of its own: what is mapped from a file is aligned otherwise, and rounding depends on alignment.
        made = [_empty(model, name, chosen, target) for name in transfer.ours]
        _fill(transfer, made, sources)
        for name, tensor in zip(transfer.ours, made, strict=True):
            _set_parameter(model, name, tensor)
            if quantize is not None:
                quantize_parameter(model, name, quantize)
        del sources, made, tensor
        for name in transfer.theirs:
            tensors.pop(name, None)
    for name in sorted(new):
        _set_parameter(model, name, _empty(model, name, chosen, target))
    model.tie_weights()
    for module in model.modules():
        if isinstance(module, Rotary):
            module.reset(target)
    initialize(model, seed, new)
    model.new_parameters = tuple(sorted(new))
    if quantize is not None and quantize_head:
        quantize_output(model)
    return model.eval()


def _on_meta(config: ModelConfig, where: str) -> Transformer:
    """The model's shapes, with no memory behind them."""
    try:
        with torch.device("meta"):
            return Transformer(config)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # sizes beyond what PyTorch counts with
        problem = (str(error).splitlines() or [""])[0]
        raise ModelError(f"the sizes in its config.json are impossible ({problem})", where=where) from None


def _refuse_announcements(config: ModelConfig, family: Family, tensors: Mapping[str, StoredTensor], where: str) -> None:
    """Refuse a config.json by which the model would take memory or time before its shapes are seen to be wrong."""
    if config.layers > len(tensors):
        raise ModelError(f"{config.layers} layers are announced, but only {len(tensors)} tensors stored", where=where)
    apart = any("{e}" in weight.theirs[0] for weight in family.weights)
    if apart and config.experts * (config.layers - len(config.dense_layers)) > len(tensors):
        raise ModelError(
            f"{config.experts} experts a layer are announced, but only {len(tensors)} tensors stored", where=where
        )
    largest = max((math.prod(tensor.shape) for tensor in tensors.values()), default=0)
    if config.head_width > largest:
        raise ModelError(
            f"heads of width {config.head_width} are announced, but the largest tensor has {largest} numbers",
            where=where,
        )


def _fill(transfer: Transfer, made: Sequence[Tensor], sources: Sequence[StoredTensor]) -> None:
    """Read a transfer's tensors into the model's, in pieces where neither side joins several."""
    if transfer.experts:
        one, count = transfer.of_one_expert(), len(transfer.theirs) // transfer.experts
        for expert in range(transfer.experts):
            _fill(one, [each[expert] for each in made], sources[expert * count : (expert + 1) * count])
    elif len(made) == len(sources) == 1 and sources[0].shape:
        place = made[0].transpose(-1, -2) if transfer.transposed else made[0]
        row = max(1, math.prod(sources[0].shape[1:])) * place.element_size()
        step = max(1, _PIECE // row)
        for start in range(0, sources[0].shape[0], step):
            place[start : start + step].copy_(sources[0].read(start, start + step))
    elif transfer.dimension == 1:
        for expert in range(len(made[0])):
            parts = [source.read(expert, expert + 1) for source in sources]
            shapes = [(1, *each.shape[1:]) for each in made]
            for place, tensor in zip(made, to_ours(transfer, parts, shapes), strict=True):
                place[expert].copy_(tensor[0])
    else:
        shapes = [tuple(each.shape) for each in made]
        for place, tensor in zip(made, to_ours(transfer, [source.read() for source in sources], shapes), strict=True):
            place.copy_(tensor)


def _set_prefix(tensors: dict[str, StoredTensor], stored: Stored) -> None:
    """Name tensors as in a checkpoint of the family's own head; others may have another prefix, bodies alone none."""
    for old, new in stored.family.renamed.items():
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[new + name.removeprefix(old)] = tensors.pop(name)
    own, present = stored.family.prefix, stored.family.stored_prefix(stored.head)
    if any(name.startswith(own) for name in tensors):
        return
    for name in list(tensors):
        if present and name.startswith(present):
            tensors[own + name.removeprefix(present)] = tensors.pop(name)
        elif not present or present == own:
            tensors[own + name] = tensors.pop(name)


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
    where: str,
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
        raise ModelError(f"the weights are not those of its config.json: {shown}", where=where)
    read = [_find(tensors, family, name) for name in sorted(wanted)]
    unknown = sorted({tensor.kind for tensor in read if tensor.dtype is None})
    if unknown:
        raise ModelError(f"weights of type {', '.join(unknown)} are not supported", where=where)


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


def _common_dtype(tensors: Sequence[StoredTensor]) -> torch.dtype:
    """The data type that holds all the tensors' values."""
    dtypes = [tensor.dtype for tensor in tensors if tensor.dtype is not None]
    return functools.reduce(torch.promote_types, dtypes)


def _empty(model: Transformer, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(model.get_parameter(name).shape, dtype=dtype, device=device)


def _set_parameter(model: Transformer, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, nn.Parameter(tensor))
