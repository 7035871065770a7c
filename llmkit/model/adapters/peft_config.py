"""PEFT's `adapter_config.json`: what it asks for, and whether this can be given. No torch.

What would change the result and is not offered is refused by name; what is only about training's beginning, memory or
other tools is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import ModelError
from llmkit.model.adapters.config import Kind
from llmkit.model.facts import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

KINDS: Mapping[tuple[bool, bool], Kind] = {
    (False, False): "lora",
    (True, False): "rslora",
    (False, True): "dora",
    (True, True): "rsdora",
}
"""Our kinds by PEFT's `use_rslora` and `use_dora`."""

_HANDLED = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "modules_to_save",
    "base_model_name_or_path", "bias", "init_lora_weights",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "auto_mapping", "peft_version", "revision", "task_type", "inference_mode", "fan_in_fan_out", "megatron_core",
    "runtime_config", "qalora_group_size", "eva_config", "ensure_weight_tying",
}  # fmt: skip
# Beginnings that leave the base weights as they are; the others (PiSSA, OLoRA, CorDA, LoftQ, ...) change them.
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class PeftConfig:
    """What an adapter_config.json says.

    Attributes:
        path: the file.
        kind, rank, alpha, dropout: as in `AdapterConfig`.
        base: name or path of the base model, or None.
        ranks, alphas: other ranks and alphas by regular expression of the reference's module names.
        modules_to_save: ends of names of modules that are saved in full.
        settings: all of it.
    """

    path: Path
    kind: Kind
    rank: int
    alpha: float
    dropout: float
    base: str | None
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    modules_to_save: tuple[str, ...]
    settings: Mapping[str, Any]

    def rank_of(self, module: str) -> int:
        """Rank on a module of the reference."""
        return next((rank for key, rank in self.ranks.items() if self._means(key, module)), self.rank)

    def alpha_of(self, module: str) -> float:
        """Alpha on a module of the reference."""
        return next((alpha for key, alpha in self.alphas.items() if self._means(key, module)), self.alpha)

    def targets(self, modules: Iterable[str]) -> list[str]:
        """Those of the reference's linear maps that the adapter stands on.

        Raises:
            ModelError: a pattern is no regular expression.
        """
        return [module for module in modules if self._is_target(module)]

    def saves(self, module: str) -> bool:
        """Whether a module of the reference is saved in full."""
        return any(self._match(rf"(^|.*\.){part}($|\..*)", module) for part in self.modules_to_save)

    def _is_target(self, module: str) -> bool:
        wanted: Any = self.settings.get("target_modules")
        excluded = self.settings.get("exclude_modules")
        if self.saves(module) or (excluded and self._named(excluded, module)):
            return False
        if not self._named(wanted, module):
            return False
        layers = self.settings.get("layers_to_transform")
        if isinstance(wanted, str) or module in wanted or layers in (None, []):
            return True
        return self._layer(module) in (layers if isinstance(layers, list) else [layers])

    def _named(self, names: Any, module: str) -> bool:
        if isinstance(names, str):
            return self._full_match(names, module)
        return any(module == name or module.endswith(f".{name}") for name in names)

    def _layer(self, module: str) -> int | None:
        patterns = self.settings.get("layers_pattern") or [r"[^.]*"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = self._match(rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.", module)
            if found is not None:
                return int(found["layer"])
        return None

    def _means(self, key: str, module: str) -> bool:
        return self._match(rf"(.*\.)?({key})$", module) is not None

    def _match(self, pattern: str, module: str) -> re.Match[str] | None:
        try:
            return re.match(pattern, module)
        except re.error as error:
            raise ModelError(f"{pattern!r} is no regular expression ({error})", where=str(self.path)) from None

    def _full_match(self, pattern: str, module: str) -> bool:
        return self._match(rf"(?:{pattern})\Z", module) is not None


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter."""
    return (directory / CONFIG).is_file()


def read_peft_config(directory: Path) -> PeftConfig:
    """Read adapter_config.json.

    Raises:
        ModelError: missing, damaged, or asking for what is not offered; the message names it.
    """
    path = directory / CONFIG
    settings = read_json(path)
    _check_support(settings, str(path))
    reader = _Reader(settings, str(path))
    saved = settings.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise ModelError("modules_to_save is no list of names", where=str(path))
    base = settings.get("base_model_name_or_path")
    return PeftConfig(
        path=path,
        kind=KINDS[bool(settings.get("use_rslora")), bool(settings.get("use_dora"))],
        rank=int(reader.number("r", 8, whole=True)),
        alpha=reader.number("lora_alpha", 8),
        dropout=reader.number("lora_dropout", 0.0, positive=False),
        base=base if isinstance(base, str) and base else None,
        ranks={key: int(value) for key, value in reader.table("rank_pattern", whole=True).items()},
        alphas=reader.table("alpha_pattern"),
        modules_to_save=tuple(saved),
        settings=settings,
    )


def _check_support(settings: Mapping[str, Any], where: str) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"an adapter of type {kind!r} is not supported",
            where=where,
            hint="LoRA, rsLoRA and DoRA are (peft_type LORA).",
        )
    if settings.get("bias", "none") not in ("none", None):
        raise ModelError(f"bias {settings['bias']!r} is not supported: biases of the base are not trained", where=where)
    start = settings.get("init_lora_weights", True)
    if not any(start is harmless or start == harmless for harmless in _HARMLESS_STARTS):
        raise ModelError(
            f"init_lora_weights {start!r} is not supported: it changes the base model's weights",
            where=where,
            hint="Convert it in PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...).",
        )
    asked = [key for key, value in settings.items() if key not in _HANDLED | _WITHOUT_EFFECT and value]
    if asked:
        raise ModelError(f"{', '.join(sorted(asked))}: not supported in an adapter", where=where)
    if not isinstance(settings.get("target_modules"), str | list) or not settings["target_modules"]:
        raise ModelError("target_modules names no modules", where=where)


class _Reader:
    """Numbers of a JSON object, refused in words where they are none."""

    def __init__(self, settings: Mapping[str, Any], where: str) -> None:
        self._settings, self._where = settings, where

    def number(self, key: str, default: float, *, whole: bool = False, positive: bool = True) -> float:
        return self._checked(key, self._settings.get(key, default), whole, positive)

    def table(self, key: str, *, whole: bool = False) -> dict[str, float]:
        values = self._settings.get(key) or {}
        if not isinstance(values, dict):
            raise ModelError(f"{key} is no table of numbers", where=self._where)
        return {name: self._checked(f"{key}.{name}", value, whole, True) for name, value in values.items()}

    def _checked(self, key: str, value: Any, whole: bool, positive: bool) -> float:
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not fits or not (value > 0 if positive else 0 <= value < 1) or value > 1e6:
            raise ModelError(f"{key}: {value!r} is not possible", where=self._where)
        return value  # type: ignore[no-any-return]


def compact(groups: Mapping[str, Sequence[str]], known: Iterable[str], chosen: Iterable[str]) -> list[str]:
    """Names for `target_modules` that mean exactly the modules `chosen`, as short as PEFT's readers are used to.

    Args:
        groups: chosen modules by what their name is within a block ("self_attn.q_proj"), or by their name.
        known: all modules that a name could mean.
        chosen: the modules that are to be meant.
    """
    everything, wanted = list(known), set(chosen)
    found: set[str] = set()
    for short, modules in groups.items():
        for candidate in (short.rpartition(".")[2], short):
            meant = {name for name in everything if name == candidate or name.endswith(f".{candidate}")}
            if meant <= wanted and meant.issuperset(modules):
                found.add(candidate)
                break
        else:
            found.update(modules)
    return sorted(found)
