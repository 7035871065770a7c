"""Between the metadata of a GGUF file and a `ModelConfig`. No torch."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from llmkit.errors import ModelError
from llmkit.model.config import Head, ModelConfig
from llmkit.model.facts import Stored
from llmkit.model.families import FAMILIES
from llmkit.model.families.base import REQUIRED, Family
from llmkit.model.gguf.architectures import ARCHITECTURES, EPSILON, PATTERN, ROTATED, SETTINGS, Architecture, Values
from llmkit.store.gguf import GGUFFile

IDS = {
    "pad_id": "tokenizer.ggml.padding_token_id",
    "bos_id": "tokenizer.ggml.bos_token_id",
    "eos_ids": "tokenizer.ggml.eos_token_id",
}
_BIASES = {
    "qkv_bias": ("attn_q", "attn_qkv"),
    "output_bias": ("attn_output",),
    "mlp_bias": ("ffn_down",),
    "expert_bias": ("ffn_down_exps",),
}
LLAMA3 = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (4.0, 1.0, 4.0, 8192))
"""Settings (factor, low, high, original context) of published models with Llama 3's scaling of frequencies."""


def architecture_of_file(file: GGUFFile) -> Architecture:
    """Raises ModelError where the architecture, or its family, is not known here."""
    name = file.architecture
    found = ARCHITECTURES.get(name)
    if found is None or found.family_of(file) not in FAMILIES:
        known = sorted(entry.name for entry in ARCHITECTURES.values() if entry.families[0] in FAMILIES)
        raise ModelError(
            f"GGUF files of the architecture {name!r} are not supported.",
            where=str(file.path),
            hint=f"Known are {', '.join(known)}.",
        )
    return found


def stored_of_gguf(
    file: GGUFFile,
    factors: Mapping[str, Sequence[float]],
    head: Head | None = None,
    labels: Sequence[str] | None = None,
) -> Stored:
    """What the file's metadata says of its model, with a family whose weights have the file's names.

    Args:
        file: the header.
        factors: divisors of rotary frequencies, of tensors "rope_freqs.weight" and the like that the file has.
        head: another head than the file's, which is causal-lm.
        labels: the classes of a classification head.

    Raises:
        ModelError: an unknown architecture, settings that are missing, impossible or not supported.
    """
    where = str(file.path)
    architecture = architecture_of_file(file)
    family = FAMILIES[architecture.family_of(file)]
    wanted: Head = head or "causal-lm"
    if wanted not in family.architectures:
        raise ModelError(f"a {family.name} model cannot carry a {wanted} head.", where=where)
    try:
        values = _values(file, architecture, family, factors) | {"head": wanted, "labels": tuple(labels or ())}
        config = ModelConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ModelError(f"{name}: {message}." if name else f"{message}.", where=where) from None
    except ValueError as error:
        raise ModelError(f"{error}.", where=where) from None
    _hold_to_weights(file, config)
    return Stored(named_as(family, architecture), "causal-lm", (), config)


def named_as(family: Family, architecture: Architecture) -> Family:
    """The family with its weights named as in files of the architecture."""
    return replace(
        family,
        weights=(*architecture.weights, *(weight for weight in family.weights if weight.ours[0] == "head.score")),
        prefix="",
        aliases={},
        ignored=("rope_freqs.weight", "rope_factors_*.weight", "blk.*.attn_rot_embd*"),
    )


def _values(
    file: GGUFFile, architecture: Architecture, family: Family, factors: Mapping[str, Sequence[float]]
) -> Values:
    prefix, where = file.architecture, str(file.path)
    # What a file has no key for (dropout, initialization) is what config.json leaves out.
    defaults = {key.ours: key.default for key in family.keys if key.default is not REQUIRED}
    values: Values = {name: value for name, value in defaults.items() if value is not None and name not in SETTINGS}
    values |= {"family": family.name, **family.parts, "activation": architecture.activation}
    # These are read off the weights: what a family's config.json may leave open, a file settles by having them.
    for name, names in _BIASES.items():
        values[name] = any(f"blk.0.{tensor}.bias" in file.tensors for tensor in names)
    values["tie_embeddings"] = "output.weight" not in file.tensors
    embeddings = file.tensors.get("token_embd.weight")
    if embeddings is None:
        raise ModelError("there is no tensor token_embd.weight.", where=where)
    values["vocab_size"] = embeddings.shape[0]
    for ours, (key, kind) in SETTINGS.items():
        value = _number(file, f"{prefix}.{key}", kind)
        # Zero switches these off.
        if value is not None and (value or ours not in ("window", "experts", "score_softcap", "logit_softcap")):
            values[ours] = value
    values["norm_eps"] = file.get(f"{prefix}.{EPSILON[values['norm']]}", float)
    if values.get("experts"):
        values.setdefault("mlp_width", values.get("expert_width"))
    for name in ("context", "width", "layers", "heads", "mlp_width"):
        if values.get(name) is None:
            raise ModelError(f"the metadata lacks {prefix}.{SETTINGS[name][0]}.", where=where)
        if values[name] < 1:
            raise ModelError(f"{prefix}.{SETTINGS[name][0]} must be above zero.", where=where)
    if values["layers"] > len(file.tensors):
        raise ModelError(f"{values['layers']} layers are announced, but only {len(file.tensors)} tensors.", where=where)
    _heads(file, values)
    _positions(file, values, factors)
    for ours, key in IDS.items():
        index = file.get(key, int, None)
        known = index is not None and 0 <= index < values["vocab_size"]
        values[ours] = ((index,) if known else ()) if ours == "eos_ids" else (index if known else None)
    pattern = file.metadata.get(f"{prefix}.{PATTERN}")
    if architecture.windowed and pattern is not None:
        values[PATTERN] = pattern
    if architecture.complete is not None:
        architecture.complete(values)
    return values


def _number(file: GGUFFile, key: str, kind: type) -> Any:
    """A setting; one that has a value for each layer must have the same for all."""
    value = file.metadata.get(key)
    if isinstance(value, array):
        distinct = set(value)
        if len(distinct) != 1:
            raise ModelError(f"{key}: layers that differ are not supported.", where=str(file.path))
        return distinct.pop()
    return file.get(key, kind, None)


def _heads(file: GGUFFile, values: Values) -> None:
    prefix = file.architecture
    values["kv_heads"] = values.get("kv_heads") or values["heads"]
    named = file.get(f"{prefix}.attention.key_length", int, None)
    if named is None and values["width"] % values["heads"]:
        raise ModelError(f"{values['heads']} heads do not divide the width {values['width']}.", where=str(file.path))
    values["head_width"] = named or values["width"] // values["heads"]
    if file.get(f"{prefix}.attention.value_length", int, values["head_width"]) != values["head_width"]:
        raise ModelError("values of another width than keys are not supported.", where=str(file.path))


def _positions(file: GGUFFile, values: Values, factors: Mapping[str, Sequence[float]]) -> None:
    if values["positions"] != "rotary":
        return
    prefix = f"{file.architecture}.rope"
    rotated = file.get(f"{file.architecture}.{ROTATED}", int, values["head_width"])
    if values["head_width"] < 1:
        raise ModelError("heads must have a width.", where=str(file.path))
    values["rotary_share"] = rotated / values["head_width"]
    original = file.get(f"{prefix}.scaling.original_context_length", int, values["context"])
    kind = file.get(f"{prefix}.scaling.type", str, "none")
    if "rope_freqs.weight" in factors:
        values["rope_scaling"] = _of_divisors(factors["rope_freqs.weight"], values, rotated, original)
    elif "rope_factors_long.weight" in factors and "rope_factors_short.weight" in factors:
        values["rope_scaling"] = {
            "kind": "longrope",
            "original_context": original,
            "factor": max(values["context"] / original, 1.0),
            "attention_factor": _unless_default(
                file.get(f"{prefix}.scaling.attn_factor", float, None), values["context"], original
            ),
            "short_factors": tuple(factors["rope_factors_short.weight"]),
            "long_factors": tuple(factors["rope_factors_long.weight"]),
        }
    elif kind in ("linear", "yarn"):
        values["rope_scaling"] = {
            "kind": kind,
            "factor": file.get(f"{prefix}.scaling.factor", float),
        }
        if kind == "yarn":
            values["rope_scaling"] |= {
                "original_context": original,
                "beta_fast": file.get(f"{prefix}.scaling.yarn_beta_fast", float, 32.0),
                "beta_slow": file.get(f"{prefix}.scaling.yarn_beta_slow", float, 1.0),
            }
    elif kind != "none":
        raise ModelError(f"rotary scaling {kind!r} is not supported.", where=str(file.path))


def longrope_attention_factor(context: int, original: int) -> float:
    """What LongRoPE multiplies cosines and sines by (Ding et al. 2024), where a config names no other number."""
    factor = max(context / original, 1.0)
    return math.sqrt(1 + math.log(factor) / math.log(original)) if original > 1 else 1.0


def _unless_default(named: float | None, context: int, original: int) -> float | None:
    if named is None or math.isclose(named, longrope_attention_factor(context, original), rel_tol=1e-5):
        return None
    return named


def _of_divisors(divisors: Sequence[float], values: Values, rotated: int, original: int) -> dict[str, Any]:
    """Llama 3's scaling where its formula gives the divisors, otherwise the divisors themselves."""
    theta = values.get("rope_theta") or 10000.0
    for factor, low, high, context in LLAMA3:
        expected = llama3_divisors(theta, rotated, factor, low, high, context)
        if len(expected) == len(divisors) and all(
            abs(a - b) <= 1e-4 * b for a, b in zip(expected, divisors, strict=True)
        ):
            return {
                "kind": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_context": context,
            }  # fmt: skip
    table = tuple(divisors)
    return {
        "kind": "longrope", "original_context": original, "attention_factor": 1.0,
        "short_factors": table, "long_factors": table,
    }  # fmt: skip


def llama3_divisors(theta: float, rotated: int, factor: float, low: float, high: float, original: int) -> list[float]:
    """By how much Llama 3's scaling divides each frequency (Grattafiori et al. 2024), as files hold them."""
    divisors = []
    for feature in range(0, rotated, 2):
        turns = original / (2 * math.pi) / theta ** (feature / rotated)
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - share) / factor + share))
    return divisors


def _hold_to_weights(file: GGUFFile, config: ModelConfig) -> None:
    """Refuse sizes that the weights do not have before anything of that size is made."""
    largest = max(max(entry.shape) for entry in file.tensors.values())
    widest = max(config.width, config.mlp_width, config.heads * config.head_width, config.expert_width)
    if widest > largest:
        raise ModelError(
            f"a width of {widest} is announced, but no tensor is wider than {largest}.", where=str(file.path)
        )
