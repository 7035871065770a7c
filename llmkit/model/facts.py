"""What a model directory's config.json says, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from llmkit.errors import ModelError
from llmkit.model.config import LABELLED, Head, ModelConfig
from llmkit.model.cost import block_linears
from llmkit.model.families import family_of
from llmkit.model.families.base import Family, read_labels
from llmkit.model.sentences import read_embedding_settings

GENERATION = "generation_config.json"
_NOT_KEPT = ("pad_token_id", "bos_token_id", "eos_token_id", "transformers_version", "_from_model_config")
_LONGEST_JSON = 100_000_000


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model directory; raises ModelError where it is missing or something else."""
    if not path.is_file():
        raise ModelError(f"there is no {path.name}", where=str(path.parent))
    try:
        if path.stat().st_size > _LONGEST_JSON:
            raise ValueError(f"it is longer than {_LONGEST_JSON:,} bytes")
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot be read as JSON ({error})", where=str(path)) from None
    if not isinstance(value, dict):
        raise ModelError("must hold a JSON object", where=str(path))
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def write_json(path: Path, value: Mapping[str, Any] | list[dict[str, Any]]) -> None:
    """Write a file of a model directory; equal values give equal bytes."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Stored:
    """A model directory as its config.json describes it.

    Attributes:
        family: how its settings and weights are named.
        head: the head that it was saved with, or None for a body alone.
        labels: the classes of a classification head.
        config: the architecture, under the head that was asked for.
        generation: what generation_config.json says beyond special tokens.
    """

    family: Family
    head: Head | None
    labels: tuple[str, ...]
    config: ModelConfig
    generation: Mapping[str, Any] = field(default_factory=dict)


def read_stored(directory: Path, head: Head | None = None, labels: tuple[str, ...] | None = None) -> Stored:
    """Read config.json and what the head has beside it.

    That is generation_config.json for a causal language model, whose end-of-text tokens count, and for an embedding
    model the files of sentence-transformers. A body alone is one where they are there.

    Args:
        directory: a Hugging Face model directory.
        head: the head wanted in place of the stored one.
        labels: names of the classes wanted in place of the stored ones.

    Raises:
        ModelError: config.json is missing, damaged, of an unknown architecture, or asks for what is not supported; or
            one of the others is damaged.
    """
    where = str(directory / "config.json")
    settings = read_json(directory / "config.json")
    _refuse_quantized(settings, where)
    family = family_of(settings, where)
    stored_head = family.stored_head(settings, where)
    embedding = read_embedding_settings(directory, read_json) if head in (None, "embedding") else None
    if embedding is not None:
        head = "embedding"
        stored_head = stored_head or head
    stored_labels = read_labels(settings, where) if stored_head in LABELLED else ()
    wanted = head or stored_head
    if wanted is None:
        raise ModelError(
            f"{family.base} has no head", where=where, hint=f"Say which one to add: {', '.join(family.heads)}."
        )
    if wanted not in family.heads:
        raise ModelError(
            f"a {family.name} model cannot carry a {wanted} head",
            where=where,
            hint=f"Its heads are {', '.join(family.heads)}.",
        )
    chosen = stored_labels if labels is None and wanted == stored_head else labels or ()
    config = family.read_config(settings, where, wanted, chosen)
    if wanted == "embedding":
        # Without a word on it: the mean, but the last token's where only that sees all.
        pooling = {"pooling": "last" if config.causal else "mean"}
        config = config.model_copy(update=pooling if embedding is None else embedding)
    if wanted != "causal-lm":
        return Stored(family, stored_head, stored_labels, config)
    generation, eos_ids = _read_generation(directory)
    if eos_ids:
        config = config.model_copy(update={"eos_ids": eos_ids})
    return Stored(family, stored_head, stored_labels, config, generation)


def _refuse_quantized(settings: Mapping[str, Any], where: str) -> None:
    """Refuse weights that another tool has quantized; MXFP4 alone is unpacked as it is read."""
    how = settings.get("quantization_config")
    method = how.get("quant_method") if isinstance(how, Mapping) else None
    if how is not None and method != "mxfp4":
        raise ModelError(
            f"its weights are quantized (quantization_config: {method or 'unknown'}), and such are not opened",
            where=where,
            hint="Open the model that they were made from, with `quantize` for int8, int4 or nf4.",
        )


def _read_generation(directory: Path) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The settings of generation_config.json beyond special tokens, and its end-of-text tokens."""
    path = directory / GENERATION
    if not (path.exists() or path.is_symlink()):
        return {}, ()
    settings = read_json(path)
    ends = settings.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(isinstance(end, int) and not isinstance(end, bool) for end in listed):
        raise ModelError("eos_token_id must be a token's number or a list of them", where=str(path))
    kept = {name: value for name, value in settings.items() if name not in _NOT_KEPT}
    return kept, tuple(end for end in listed if end >= 0)


def architecture_facts(config: ModelConfig) -> dict[str, Any]:
    """An architecture as a JSON value, without what follows from the tokenizer alone."""
    return config.model_dump(mode="json", exclude={"pad_id", "bos_id", "eos_ids"}, exclude_defaults=True)


def known_architecture(facts: Mapping[str, Any], head: Head, labels: tuple[str, ...] = ()) -> ModelConfig | None:
    """The architecture of a model of which no more is there than its facts, under a head; None where they lack it."""
    stored = facts.get("architecture")
    if stored is None:
        return None
    return ModelConfig.model_validate(stored).with_head(head, labels)


def read_model_facts(directory: str | Path) -> dict[str, Any]:
    """What can be known of a model without opening its weights.

    Returns:
        family, head (None for a body alone), labels, causal, vocab_size, context, width, layers, linears (inputs and
        outputs of a block's linear maps), pad_id, eos_ids, parameters (their number by the closed form), architecture
        (all of it; see `known_architecture`) and, where experts are routed, active_parameters (those that work for any
        one token).

    Raises:
        ModelError: as for `read_stored`.
    """
    path = Path(directory)
    settings = read_json(path / "config.json")
    family = family_of(settings, str(path / "config.json"))
    alone = family.stored_head(settings, str(path / "config.json")) is None
    named = not alone or read_embedding_settings(path, read_json) is not None
    stored = read_stored(path, head=None if named else family.own_head())
    config = stored.config
    active = {"active_parameters": config.active_parameter_count()} if config.experts else {}
    return {
        "family": config.family,
        "head": stored.head,
        "labels": list(config.labels),
        "causal": config.causal,
        "vocab_size": config.vocab_size,
        "context": config.context,
        "width": config.width,
        "layers": config.layers,
        "linears": {name: list(shape) for name, shape in block_linears(config).items()},
        "pad_id": config.pad_id,
        "eos_ids": list(config.eos_ids),
        "parameters": config.parameter_count(),
        "architecture": architecture_facts(config),
        **active,
    }
