"""Rotary settings of config.json, in the forms of transformers 4 and 5: the base, the share and the scaling. No torch.

transformers 4, like most other tools, has keys of their own (`rope_theta`, `rope_scaling` with `rope_type` or `type`);
transformers 5 keeps all in one table, `rope_parameters`, or in one for each kind of layer. Both are read; the first
is written, which transformers 5 reads too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmkit.model.config import ModelConfig, RopeScaling

GLOBAL, LOCAL = "full_attention", "sliding_attention"
"""How transformers names layers that see everything, and such with a window."""

_REQUIRED = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "yarn": {},
    "llama3": {"factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"},
    "longrope": {"short_factors": "short_factor", "long_factors": "long_factor"},
}
_OPTIONAL = {
    "yarn": {
        "factor": "factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
    "longrope": {"factor": "factor", "attention_factor": "attention_factor"},
}


@dataclass(frozen=True)
class RopeNames:
    """How a family's config.json names rotary settings outside `rope_parameters`, and what it takes without them.

    `share` and `local_theta` are None where the family has no such setting. `synonyms` are other names of kinds of
    scaling; `default_original` is the context before scaling, where it is not that of the config or of the scaling.
    """

    theta: str = "rope_theta"
    default_theta: float = 10000.0
    share: str | None = None
    default_share: float = 1.0
    local_theta: str | None = None
    default_local_theta: float = 10000.0
    synonyms: Mapping[str, str] = field(default_factory=dict)
    default_original: int | None = None


PLAIN = RopeNames()


def read_rope(settings: Mapping[str, Any], values: dict[str, Any], names: RopeNames = PLAIN) -> None:
    """Set rope_theta, rope_scaling, rotary_share and local_rope_theta of `values`, which must hold the context.

    Raises:
        ValueError: a setting is missing, of another type than is due, or asks for what the transformer does not offer.
    """
    table, local, where = _tables(settings, names)
    theta = table.get("rope_theta", settings.get(names.theta))
    values["rope_theta"] = names.default_theta if theta is None else theta
    share = table.get("partial_rotary_factor", settings.get(names.share or "partial_rotary_factor"))
    if names.share is not None:
        values["rotary_share"] = names.default_share if share is None else share
    elif share not in (None, 1):
        raise ValueError(f"partial_rotary_factor: {share!r} is not supported here, only 1.0")
    values["rope_scaling"] = _read_scaling(table, settings, values["context"], names, where)
    if names.local_theta is not None:
        if local.get("rope_type", "default") != "default":
            raise ValueError(f"{where}.{LOCAL}: rotary scaling of local layers is not supported")
        theta = local.get("rope_theta", settings.get(names.local_theta))
        values["local_rope_theta"] = names.default_local_theta if theta is None else theta


def _tables(settings: Mapping[str, Any], names: RopeNames) -> tuple[Mapping[str, Any], Mapping[str, Any], str]:
    """The settings of layers that see everything, those of local ones, and the key that they were found under."""
    where = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"
    table = settings.get(where) or {}
    local: Any = {}
    if not isinstance(table, dict):
        raise ValueError(f"{where}: {table!r} is no table of settings")
    if GLOBAL in table or LOCAL in table:
        if names.local_theta is None:
            raise ValueError(f"{where}: settings for each kind of layer are not supported here")
        table, local = table.get(GLOBAL) or {}, table.get(LOCAL) or {}
        if not isinstance(table, dict) or not isinstance(local, dict):
            raise ValueError(f"{where}: {GLOBAL} and {LOCAL} must be tables of settings")
    return table, local, where


def _read_scaling(
    table: Mapping[str, Any], settings: Mapping[str, Any], context: int, names: RopeNames, where: str
) -> dict[str, Any] | None:
    kind = table.get("rope_type", table.get("type", "default"))
    if kind in (None, "default"):
        return None
    kind = names.synonyms.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in _REQUIRED:
        raise ValueError(f"{where}: rotary scaling {kind!r} is not supported, only {', '.join(_REQUIRED)}")
    missing = [theirs for theirs in _REQUIRED[kind].values() if table.get(theirs) is None]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} is missing")
    fields = {**_REQUIRED[kind], **_OPTIONAL.get(kind, {})}
    scaling = {ours: table[theirs] for ours, theirs in fields.items() if table.get(theirs) is not None}
    if kind in ("yarn", "llama3", "longrope"):
        name = "original_max_position_embeddings"
        original = settings.get(name) or names.default_original or table.get(name) or context
        if not isinstance(original, int) or original < 1:
            raise ValueError(f"{where}: {name}: {original!r} is no number of tokens")
        scaling["original_context"] = original
        scaling.setdefault("factor", max(1.0, context / original))
    if kind == "yarn" and "attention_factor" not in scaling:
        factor = _attention_factor(scaling["factor"], table.get("mscale"), table.get("mscale_all_dim"))
        scaling |= {} if factor is None else {"attention_factor": factor}
    return {"kind": kind, **scaling}


def _attention_factor(factor: Any, scale: Any, scale_all: Any) -> float | None:
    """What yarn multiplies cosines and sines by, where two scales say so (DeepSeek-AI 2024)."""
    if not scale or not scale_all:
        return None
    try:
        above, below = ((0.1 * float(each) * math.log(float(factor)) + 1.0) for each in (scale, scale_all))
        return above / below if float(factor) > 1 else 1.0
    except (TypeError, ValueError, ArithmeticError):
        raise ValueError(f"mscale: {scale!r} and mscale_all_dim: {scale_all!r} must be numbers") from None


def write_rope(config: ModelConfig, settings: dict[str, Any], names: RopeNames = PLAIN) -> None:
    """Complete config.json with the rotary settings; `read_rope` reads the same from it."""
    settings[names.theta] = config.rope_theta
    if names.share is not None:
        settings[names.share] = config.rotary_share
    if names.local_theta is not None:
        settings[names.local_theta] = config.local_rope_theta or config.rope_theta
    settings["rope_scaling"] = None
    if config.rope_scaling is not None:
        settings["rope_scaling"] = _write_scaling(config.rope_scaling)
        if config.rope_scaling.kind == "longrope":
            # Before transformers 5 it was looked for here alone.
            settings["original_max_position_embeddings"] = config.rope_scaling.original_context


def _write_scaling(scaling: RopeScaling) -> dict[str, Any]:
    fields = {**_REQUIRED[scaling.kind], **_OPTIONAL.get(scaling.kind, {})}
    values = scaling.model_dump()
    table = {theirs: values[ours] for ours, theirs in fields.items() if values[ours] is not None}
    if scaling.kind == "longrope":
        table |= {name: list(table[name]) for name in ("short_factor", "long_factor")}
    if scaling.kind in ("yarn", "llama3", "longrope"):
        table["original_max_position_embeddings"] = scaling.original_context
    return {"rope_type": scaling.kind, **table}
