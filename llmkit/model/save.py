"""Saving a model as a Hugging Face directory that transformers and others open without conversion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llmkit.model.checkpoint import WEIGHTS
from llmkit.model.families import FAMILIES
from llmkit.model.families.base import write_ids
from llmkit.model.layout import to_theirs
from llmkit.model.transformer import Transformer


def save_model(
    model: Transformer,
    directory: str | Path,
    *,
    dtype: torch.dtype | None = None,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json, model.safetensors and, for a causal language model, generation_config.json.

    The bytes depend on the weights and the config alone. Tied weights are written once.

    Args:
        model: what to save; any device.
        directory: where to; made if it is missing.
        dtype: of the weights in the file; by default the model's.
        generation: settings for generation_config.json beyond the special tokens, such as {"temperature": 0.7}.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    tensors = export_tensors(model, dtype)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    settings = FAMILIES[model.config.family].write_config(model.config)
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    settings["dtype"] = kinds.pop() if len(kinds) == 1 else "float32"
    _write_json(path / "config.json", settings)
    if model.config.head == "causal-lm":
        ids = {
            "pad_token_id": model.config.pad_id,
            "bos_token_id": model.config.bos_id,
            "eos_token_id": write_ids(model.config.eos_ids),
        }
        known = {name: value for name, value in ids.items() if value is not None}
        _write_json(path / "generation_config.json", {**known, **(generation or {})})


def export_tensors(model: Transformer, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The weights under the names and in the layout of the reference, on the CPU."""
    family = FAMILIES[model.config.family]
    parameters = dict(model.named_parameters())
    exported: dict[str, Tensor] = {}
    for transfer in family.transfers(model.config, list(parameters)):
        parts = [parameters[name].detach().to(device="cpu", dtype=dtype) for name in transfer.ours]
        for name, part in zip(transfer.theirs, to_theirs(transfer, parts), strict=True):
            exported[name] = part
            if name in family.aliases:
                exported[family.aliases[name]] = exported[name].clone()
    return exported


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
