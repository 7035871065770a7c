"""Adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, under the reference's names.

Where the reference keeps several of our linear maps stacked in one (GPT-2's `c_attn`), its adapter has one A and a B of
all their outputs. Ours share that A and take their rows of B, so both compute and learn the same. A map of such a stack
that has no adapter here gets rows of zeros there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmkit.errors import ModelError
from llmkit.model.adapters.attach import (
    Attached,
    Placement,
    attached,
    fingerprint,
    install,
    linear_names,
    linear_of,
)
from llmkit.model.adapters.config import AdapterConfig
from llmkit.model.adapters.lora import LowRank, MagnitudeLowRank
from llmkit.model.adapters.peft_config import CONFIG, WEIGHTS, PeftConfig, compact, read_peft_config
from llmkit.model.adapters.vocabulary import grow_vocabulary, untie
from llmkit.model.config import Head
from llmkit.model.facts import read_json, write_json
from llmkit.model.families import FAMILIES
from llmkit.model.families.base import Family, Transfer
from llmkit.model.layers import Linear
from llmkit.model.layout import to_ours, to_theirs
from llmkit.model.tensors import write_safetensors
from llmkit.model.transformer import Transformer

PREFIX = "base_model.model."
NOTE = "llmkit.json"
"""A file beside PEFT's two with what these do not say: the head, and the base's fingerprint, by which one is known."""
_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
_TASKS = {"causal-lm": "CAUSAL_LM", "classification": "SEQ_CLS", "reward": "SEQ_CLS"}
_LAYER = re.compile(r".*?\.\d+\.")


def save_adapter(model: Transformer, directory: str | Path, *, base: str | None = None) -> None:
    """Write a model's adapter, and the modules that are trained with it, as PEFT does; same weights, same bytes.

    Args:
        model: with an adapter.
        directory: where to; made if it is missing.
        base: name or path of the model that the adapter is for; a relative path begins at `directory`.

    Raises:
        ModelError: the model has no adapter.
    """
    state, path = attached(model), Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    names = _Names(model, FAMILIES[model.config.family].stored_prefix(model.config.head))
    stacks = [_Stack(model, transfer) for transfer in names.linears]
    chosen = [stack for stack in stacks if stack.adapters]
    tensors = {PREFIX + name: tensor for stack in chosen for name, tensor in stack.export().items()}
    saved = dict(_trained_tensors(model, state, names))
    tensors |= {PREFIX + name: tensor for name, tensor in saved.items()}
    write_safetensors(tensors, path / WEIGHTS, {"format": "pt"})
    config = state.config
    first = chosen[0] if chosen else None
    rank, alpha = (config.rank, config.alpha) if first is None else (first.rank, first.alpha)
    modules = [stack.module for stack in chosen]
    groups: dict[str, list[str]] = {}
    for module in modules:
        groups.setdefault(_LAYER.sub("", module, count=1), []).append(module)
    settings = {
        "peft_type": "LORA",
        "task_type": _TASKS.get(model.config.head),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": config.dropout,
        "use_rslora": config.kind in ("rslora", "rsdora"),
        "use_dora": config.learns_magnitude,
        "init_lora_weights": True if config.initialization == "kaiming" else config.initialization,
        "bias": "none",
        "fan_in_fan_out": bool(chosen) and all(stack.transposed for stack in chosen),
        "target_modules": compact(groups, [stack.module for stack in stacks], modules),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in saved}) or None,
        "rank_pattern": {re.escape(s.module): s.rank for s in chosen if s.rank != rank},
        "alpha_pattern": {re.escape(s.module): _plain(s.alpha) for s in chosen if s.alpha != alpha},
    }
    write_json(path / CONFIG, settings)
    note = {"base_fingerprint": state.fingerprint, "head": model.config.head, "labels": list(model.config.labels)}
    write_json(path / NOTE, note)


def load_adapter(model: Transformer, directory: str | Path) -> None:
    """Put an adapter that PEFT or llmkit has saved on its base model, in place.

    Embeddings that have grown since are grown here too.

    Raises:
        ModelError: the adapter is of a kind that is not offered, damaged, or another model's: names or shapes differ,
            or the base model's values do, where llmkit has saved it.
    """
    path = Path(directory)
    config = read_peft_config(path)
    tensors = _read_tensors(path / WEIGHTS)
    low = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    full = {name: tensor for name, tensor in tensors.items() if name not in low}
    where = str(path / WEIGHTS)
    names = _Names(model, _prefix_of(tensors, model))
    transfers = {_module(transfer): transfer for transfer in names.linears}
    _check_names(config, low, full, transfers, where)
    placements = [_read_placement(config, transfers[module], low, where) for module in _modules(low)]
    adapted = [name for placement in placements for name in placement.names]
    known = read_json(path / NOTE).get("base_fingerprint") if (path / NOTE).is_file() else None
    if known is not None and fingerprint(model) not in (known, None):
        raise ModelError(
            "the adapter was made for another base model: the weights it stands on have other values",
            where=where,
            hint=f"It names its base as {config.base!r}.",
        )
    _fit_vocabulary(model, config, names, full)
    whole = _full_transfers(names, full, where)
    settings = AdapterConfig(
        kind=config.kind,
        rank=config.rank,
        alpha=float(config.alpha),
        dropout=float(config.dropout),
        targets=adapted or ["all-linear"],
        ranks={name: p.rank for p in placements if p.rank != config.rank for name in p.names},
        alphas={name: float(p.alpha) for p in placements if p.alpha != config.alpha for name in p.names},
        trainable=sorted({name.rpartition(".")[0] for transfer in whole for name in transfer.ours}),
    )
    install(model, settings, placements, settings.trainable, fingerprint(model))
    with torch.no_grad():
        for placement in placements:
            _Stack(model, transfers[_module_of(transfers, placement)]).load(low, where)
        _load_full(model, whole, full, where)


def read_head(directory: Path) -> tuple[Head | None, tuple[str, ...] | None]:
    """The head that an adapter's model has, and the names of its classes; None where they are the base model's.

    PEFT says no more of a classifier than its tensors do: their rows are classes without names, one row a reward.
    """
    note = read_json(directory / NOTE) if (directory / NOTE).is_file() else {}
    head, labels = note.get("head"), note.get("labels", [])
    if head is not None:
        if head not in get_args(Head) or not isinstance(labels, list):
            raise ModelError("head and labels are none that llmkit writes", where=str(directory / NOTE))
        return cast(Head, head), tuple(map(str, labels)) or None
    if read_peft_config(directory).settings.get("task_type") != _TASKS["classification"]:
        return None, None
    tensors = _read_tensors(directory / WEIGHTS)
    rows = next((len(tensor) for name, tensor in tensors.items() if _is_head(name) and tensor.dim() == 2), 0)
    if rows == 1:
        return "reward", None
    return "classification", tuple(f"LABEL_{index}" for index in range(rows)) or None


class _Names:
    """The reference's names of a model's weights.

    Attributes:
        linears: tensors that hold the weights of linear maps.
        all: all tensors, shared ones under each of their names.
    """

    def __init__(self, model: Transformer, prefix: str) -> None:
        """The names with `prefix` at the beginning of those of the body."""
        family = FAMILIES[model.config.family]
        known = [name for name, _ in model.named_parameters(remove_duplicate=False) if ".adapter." not in name]
        linears = [f"{name}.weight" for name in linear_names(model)]
        everything = list(dict.fromkeys([*known, *linears]))
        self.all = [self._named(transfer, family, prefix) for transfer in family.transfers(model.config, everything)]
        self.linears = [transfer for transfer in self.all if transfer.ours[0] in set(linears)]

    @staticmethod
    def _named(transfer: Transfer, family: Family, prefix: str) -> Transfer:
        own = family.prefix
        names = [family.aliases.get(name, name) for name in transfer.theirs]
        body = [prefix + name.removeprefix(own) if own and name.startswith(own) else name for name in names]
        return replace(transfer, theirs=tuple(body))


def _prefix_of(tensors: Mapping[str, Tensor], model: Transformer) -> str:
    """What names of the body begin with in an adapter: nothing where it was made for a body without a head."""
    family = FAMILIES[model.config.family]
    usual = family.stored_prefix(model.config.head)
    return next((each for each in (usual, family.prefix) if any(name.startswith(each) for name in tensors)), "")


class _Stack:
    """The linear maps of ours that are one module of the reference, and their adapters."""

    def __init__(self, model: Transformer, transfer: Transfer) -> None:
        self.module = _module(transfer)
        self.transposed = transfer.transposed
        # B is [outputs, rank] even where the reference stores its weight as [inputs, outputs].
        self.transfer = replace(transfer, transposed=False)
        self.linears = [linear_of(model, name.removesuffix(".weight")) for name in transfer.ours]
        self.adapters = [linear.adapter for linear in self.linears if isinstance(linear.adapter, LowRank)]

    @property
    def rank(self) -> int:
        return self.adapters[0].rank

    @property
    def alpha(self) -> float:
        return self.adapters[0].alpha

    def export(self) -> dict[str, Tensor]:
        """Tensors by name, on the CPU."""
        first = self.adapters[0]
        parts = [
            adapter.b.detach() if isinstance(adapter, LowRank) else first.b.new_zeros(linear.out_features, first.rank)
            for linear, adapter in self._pairs()
        ]
        found = {_A: first.a.detach(), _B: self._stacked(parts)}
        if isinstance(first, MagnitudeLowRank):
            lengths = [
                adapter.magnitude.detach() if isinstance(adapter, MagnitudeLowRank) else _row_lengths(linear, first)
                for linear, adapter in self._pairs()
            ]
            found[_MAGNITUDE] = self._stacked(lengths)
        return {self.module + kind: tensor.cpu().contiguous() for kind, tensor in found.items()}

    def _pairs(self) -> list[tuple[Linear, object]]:
        return [(linear, linear.adapter) for linear in self.linears]

    def load(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Set the adapters' parameters; all maps of the stack have one."""
        for kind, leaf in ((_A, "a"), (_B, "b"), (_MAGNITUDE, "magnitude")):
            if kind == _MAGNITUDE and not isinstance(self.adapters[0], MagnitudeLowRank):
                continue
            name = self.module + kind
            places = [getattr(adapter, leaf) for adapter in self.adapters]
            shapes = [tuple(place.shape) for place in places]
            wanted = shapes[0] if leaf == "a" else (sum(shape[0] for shape in shapes), *shapes[0][1:])
            found = tuple(tensors[name].shape)
            if found != wanted:
                raise ModelError(
                    f"{name} has shape {list(found)}, not {list(wanted)}: the adapter is for another model", where=where
                )
            values = [tensors[name]] if leaf == "a" else to_ours(self.transfer, [tensors[name]], shapes)
            for place, value in zip(places, values, strict=False):
                place.copy_(value)

    def _stacked(self, parts: list[Tensor]) -> Tensor:
        return to_theirs(self.transfer, parts)[0]


def _row_lengths(linear: Linear, like: LowRank) -> Tensor:
    lengths: Tensor = linear.dense_weight().detach().to(like.a.dtype).norm(dim=1)
    return lengths


def _module(transfer: Transfer) -> str:
    """The reference's module that holds a linear map."""
    if len(transfer.theirs) != 1:
        raise ModelError(f"{transfer.ours[0]} is several modules of the reference, which an adapter cannot be for")
    return transfer.theirs[0].removesuffix(".weight")


def _module_of(transfers: Mapping[str, Transfer], placement: Placement) -> str:
    first = f"{placement.names[0]}.weight"
    return next(module for module, transfer in transfers.items() if first in transfer.ours)


def _modules(low: Mapping[str, Tensor]) -> list[str]:
    return [name.removesuffix(_A) for name in low if name.endswith(_A)]


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _trained_tensors(model: Transformer, state: Attached, names: _Names) -> Iterator[tuple[str, Tensor]]:
    """Modules trained in full, under the reference's names."""
    for transfer in names.all:
        there = [name in state.trained for name in transfer.ours]
        if not any(there):
            continue
        if not all(there):
            raise ModelError(f"{', '.join(transfer.ours)} are one tensor in this family: train all of them or none")
        parts = [model.get_parameter(name).detach().cpu() for name in transfer.ours]
        for name, tensor in zip(transfer.theirs, to_theirs(transfer, parts), strict=True):
            yield name, tensor.clone()


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors by the reference's names, without PEFT's prefix."""
    if not file.is_file():
        raise ModelError(
            f"there is no {WEIGHTS}",
            where=str(file.parent),
            hint="Pickled adapters (adapter_model.bin) are not opened; save them as safetensors.",
        )
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"damaged adapter ({error})", where=str(file)) from None
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def _check_names(
    config: PeftConfig,
    low: Mapping[str, Tensor],
    full: Mapping[str, Tensor],
    transfers: Mapping[str, Transfer],
    where: str,
) -> None:
    """Refuse an adapter whose tensors are not exactly those that its config asks for in this model."""
    kinds = (_A, _B, _MAGNITUDE) if config.kind in ("dora", "rsdora") else (_A, _B)
    wanted = {module + kind for module in config.targets(transfers) for kind in kinds}
    problems = [f"missing {name}" for name in sorted(wanted - low.keys())]
    problems += [f"unexpected {name}" for name in sorted(low.keys() - wanted)]
    problems += [f"unexpected {name}" for name in sorted(full) if not config.saves(name) and not _is_head(name)]
    if problems or not (low or full):
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise ModelError(f"the adapter does not fit the model: {shown or 'it is empty'}", where=where)


def _is_head(name: str) -> bool:
    # PEFT saves the final map of its classifiers without being asked in the config.
    return name.split(".", maxsplit=1)[0] in ("classifier", "score")


def _read_placement(config: PeftConfig, transfer: Transfer, low: Mapping[str, Tensor], where: str) -> Placement:
    module = _module(transfer)
    rank, stored = config.rank_of(module), low[module + _A].shape[0]
    if rank != stored:
        raise ModelError(f"{module}{_A} has {stored} rows, and the config says rank {rank}", where=where)
    names = tuple(name.removesuffix(".weight") for name in transfer.ours)
    return Placement(names, rank, float(config.alpha_of(module)))


def _fit_vocabulary(model: Transformer, config: PeftConfig, names: _Names, full: Mapping[str, Tensor]) -> None:
    """Make room for the new tokens of saved embeddings, and untie a head that differs from them."""
    theirs = {name: transfer.theirs[0] for transfer in names.all for name in transfer.ours}
    token, head = theirs["embeddings.token.weight"], theirs.get("head.projection.weight")
    if (token in full) != (head in full) and not config.settings.get("ensure_weight_tying"):
        untie(model)
    if token in full and full[token].dim() == 2 and len(full[token]) > model.config.vocab_size:
        grow_vocabulary(model, len(full[token]), known=model.config.vocab_size)


def _full_transfers(names: _Names, full: Mapping[str, Tensor], where: str) -> list[Transfer]:
    """What the modules saved in full are in our model."""
    found = [transfer for transfer in names.all if all(name in full for name in transfer.theirs)]
    left = sorted(full.keys() - {name for transfer in found for name in transfer.theirs})
    if left:
        raise ModelError(f"the adapter does not fit the model: unexpected {', '.join(left[:6])}", where=where)
    return found


def _load_full(model: Transformer, transfers: list[Transfer], full: Mapping[str, Tensor], where: str) -> None:
    done: dict[int, Tensor] = {}
    for transfer in transfers:
        places = [model.get_parameter(name) for name in transfer.ours]
        values = to_ours(transfer, [full[name] for name in transfer.theirs], [tuple(p.shape) for p in places])
        for name, place, value in zip(transfer.ours, places, values, strict=True):
            if place.shape != value.shape:
                raise ModelError(
                    f"{name}: shape {list(value.shape)} in the adapter, {list(place.shape)} in the model", where=where
                )
            earlier = done.setdefault(id(place), value)
            if earlier is not value and not torch.equal(earlier, value):
                raise ModelError(
                    f"{name} shares its weight with another module, and the adapter holds two different ones",
                    where=where,
                )
            place.copy_(value)
