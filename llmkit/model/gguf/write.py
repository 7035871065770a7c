"""Writing a model as a GGUF file that llama.cpp runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from llmkit.errors import ModelError
from llmkit.model.config import ModelConfig, RopeScaling
from llmkit.model.families import FAMILIES
from llmkit.model.gguf.architectures import EPSILON, ROTATED, SETTINGS, Architecture, architecture_of
from llmkit.model.gguf.read import permuted_rows, rotated
from llmkit.model.gguf.settings import llama3_divisors, longrope_attention_factor, named_as, stored_of_gguf
from llmkit.model.save import lay_out
from llmkit.model.tensors import StoredTensor
from llmkit.model.transformer import Transformer
from llmkit.store.files import sync_directory, sync_file
from llmkit.store.gguf import GGUFFile, TensorEntry

Kind = Literal["f32", "f16", "bf16", "q8_0"]
KINDS: tuple[Kind, ...] = ("f32", "f16", "bf16", "q8_0")

_FILE_TYPES: Mapping[Kind, int] = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_BLOCK = 32
_ALWAYS_F32 = ("_norm.weight", ".bias", "ffn_gate_inp.weight", "position_embd.weight", "attn_sinks.weight")
"""Endings of tensors that llama.cpp adds or multiplies with, and so wants in full."""

_WITHOUT_EFFECT = frozenset(
    {"family", "pad_id", "bos_id", "eos_ids", "dropout", "embedding_dropout", "attention_dropout", "head_dropout",
     "init_std", "scaled_residual_init", "router_loss_weight", "transform_bias", "pooling", "pooler",
     "normalize_embedding"}
)  # fmt: skip
"""Settings that change nothing of what a causal language model of these architectures computes."""

Encoded = np.ndarray[Any, np.dtype[Any]]


def write_gguf(
    model: Transformer, path: str | Path, *, kind: Kind, tokenizer: Mapping[str, Any], name: str | None = None
) -> None:
    """Write a causal language model as a GGUF file.

    Adapters are merged and quantized maps dense. One tensor is in memory at a time beyond the model; the file is put in
    place once it is whole.

    Args:
        model: what to write; any device.
        path: the file, replaced where it is there.
        kind: type of the matrices; vectors are fp32. Matrices whose rows no block of Q8_0 divides are f16.
        tokenizer: metadata of the tokenizer, as `llmkit.tokenizer.gguf_write` gives it.
        name: of the model, for people.

    Raises:
        ModelError: no architecture of GGUF computes what the model does.
    """
    from gguf import GGUFWriter

    path = Path(path)
    config = model.config
    architecture = _architecture(config, str(path))
    metadata = {
        "general.architecture": architecture.name,
        **({"general.name": name} if name else {}),
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": 2,
        **settings(config, architecture),
        **tokenizer,
    }
    tensors = [*_factors(config), *_tensors(model, architecture)]
    _check_expressible(config, architecture, metadata, tensors, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        writer = GGUFWriter(beside, architecture.name)
        writer.kv_data[0].clear()
        for key, value in metadata.items():
            _add(writer, key, value)
        kinds = [_kind_of(tensor, kind) for tensor in tensors]
        for tensor, chosen in zip(tensors, kinds, strict=True):
            _announce(writer, tensor, chosen)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, chosen in zip(tensors, kinds, strict=True):
            writer.write_tensor_data(_encode(tensor.read(), chosen))
        writer.close()
        sync_file(beside)
        beside.replace(path)
        sync_directory(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def settings(config: ModelConfig, architecture: Architecture) -> dict[str, Any]:
    """The architecture's keys of the metadata."""
    prefix = architecture.name
    values = {ours: getattr(config, ours) for ours in SETTINGS}
    if config.positions != "rotary":
        del values["rope_theta"]
    if not config.experts:
        del values["experts"], values["experts_per_token"], values["expert_width"]
    if not architecture.windowed:
        del values["window"]
    if not config.parallel_residual and prefix != "gptneox":
        del values["parallel_residual"]
    found = {f"{prefix}.{SETTINGS[ours][0]}": value for ours, value in values.items() if value is not None}
    found |= {
        f"{prefix}.vocab_size": config.vocab_size,
        f"{prefix}.attention.value_length": config.head_width,
        f"{prefix}.{EPSILON[config.norm]}": config.norm_eps,
    }
    if config.positions == "rotary":
        found[f"{prefix}.{ROTATED}"] = config.rotary_width
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind != "llama3":
        found[f"{prefix}.rope.scaling.type"] = scaling.kind
        if scaling.kind != "longrope":  # by which llama.cpp would divide positions, beside the table
            found[f"{prefix}.rope.scaling.factor"] = scaling.factor
        if scaling.kind != "linear":
            found[f"{prefix}.rope.scaling.original_context_length"] = scaling.original_context
        if scaling.kind == "longrope":
            own = longrope_attention_factor(config.context, scaling.original_context)
            found[f"{prefix}.rope.scaling.attn_factor"] = scaling.attention_factor or own
        elif scaling.kind == "yarn":
            found[f"{prefix}.rope.scaling.yarn_beta_fast"] = scaling.beta_fast
            found[f"{prefix}.rope.scaling.yarn_beta_slow"] = scaling.beta_slow
    return found


def _architecture(config: ModelConfig, where: str) -> Architecture:
    """The architecture that models of the config's family are written as; refuses what it does not know."""
    architecture = architecture_of(config.family)
    if architecture is None or config.head != "causal-lm":
        what = f"of the family {config.family}" if architecture is None else f"with a {config.head} head"
        raise ModelError(f"GGUF files are not written of models {what}.", where=where)
    return architecture


def _check_expressible(
    config: ModelConfig,
    architecture: Architecture,
    metadata: Mapping[str, Any],
    tensors: Sequence[StoredTensor],
    path: Path,
) -> None:
    """Refuse a config of which the file would say something else: it must be read back as what it was.

    A window that no sequence reaches is no window. What the file says and llmkit understands, but llama.cpp does not
    compute, is refused too.
    """
    strange = [name for name in factor_names(tensors) if not name.startswith(architecture.tables)]
    if strange:
        raise ModelError(f"llama.cpp's {architecture.name} has no rope_scaling by {strange[0]}.", where=str(path))
    entries = {tensor.name: TensorEntry(tensor.name, tensor.shape, "F32", 0, 0) for tensor in tensors}
    factors = {tensor.name: tensor.read().tolist() for tensor in tensors if tensor.name in factor_names(tensors)}
    read = stored_of_gguf(GGUFFile(path, metadata, entries), factors).config
    expected = config
    if not architecture.windowed and config.window is not None and config.window >= config.context:
        expected = config.model_copy(update={"window": None, "local_layers": ()})
    for name, value in architecture.fixed.items():
        if getattr(config, name) != value:
            problem = f"llama.cpp's {architecture.name} is always {'with' if value else 'without'} {name}."
            raise ModelError(problem, where=str(path))
    for name in type(config).model_fields:
        ours, theirs = getattr(expected, name), getattr(read, name)
        if name not in _WITHOUT_EFFECT and not _same(ours, theirs) and not (name == "rope_scaling" and _divided(ours)):
            raise ModelError(
                f"llama.cpp's {architecture.name} has no {name} of {str(ours)[:60]}, only {str(theirs)[:60]}.",
                where=str(path),
            )


def factor_names(tensors: Sequence[StoredTensor]) -> list[str]:
    """Names of the tensors that hold rotary factors."""
    return [tensor.name for tensor in tensors if tensor.name.startswith("rope_")]


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two settings are equal but for the rounding of numbers to fp32."""
    if isinstance(ours, BaseModel) and isinstance(theirs, BaseModel):
        return all(_same(getattr(ours, name), getattr(theirs, name)) for name in type(ours).model_fields)
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, int | float):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return bool(ours == theirs)


def _divided(scaling: RopeScaling | None) -> bool:
    """Whether a scaling is written as the divisors that it makes, which say all of it."""
    return scaling is not None and scaling.kind == "llama3"


def _tensors(model: Transformer, architecture: Architecture) -> Iterator[StoredTensor]:
    """The weights under the names and in the layout of the file."""
    config = model.config
    for tensor in lay_out(model, named_as(FAMILIES[config.family], architecture)):
        if architecture.permuted and rotated(tensor.name):
            yield _changed(tensor, lambda whole: permuted_rows(whole, config.head_width))
        elif config.norm_offset and tensor.name.endswith("_norm.weight"):
            yield _changed(tensor, lambda whole: whole.float() + 1.0)
        else:
            yield tensor


def _changed(tensor: StoredTensor, change: Any) -> StoredTensor:
    def rows(start: int, stop: int | None) -> Tensor:
        found: Tensor = change(tensor.read())[start:stop]
        return found

    return replace(tensor, rows=rows)


def _factors(config: ModelConfig) -> Iterator[StoredTensor]:
    """Tables of rotary factors that are tensors of a file."""
    scaling = config.rope_scaling
    tables: dict[str, Any] = {}
    if scaling is not None and scaling.kind == "llama3":
        tables["rope_freqs.weight"] = llama3_divisors(
            config.rope_theta, config.rotary_width, scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor,
            scaling.original_context,
        )  # fmt: skip
    elif scaling is not None and scaling.kind == "longrope":
        tables["rope_factors_long.weight"] = scaling.long_factors
        tables["rope_factors_short.weight"] = scaling.short_factors
    for name, table in tables.items():
        values = torch.tensor(table, dtype=torch.float32)
        yield StoredTensor(name, tuple(values.shape), "F32", torch.float32, lambda start, stop, v=values: v[start:stop])  # type: ignore[misc]


def _kind_of(tensor: StoredTensor, kind: Kind) -> Kind:
    if len(tensor.shape) == 1 or tensor.name.endswith(_ALWAYS_F32):
        return "f32"
    return "f16" if kind == "q8_0" and tensor.shape[-1] % _BLOCK else kind


def _announce(writer: Any, tensor: StoredTensor, kind: Kind) -> None:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    raw = GGMLQuantizationType[kind.upper()]
    if kind in ("f32", "f16"):
        dtype: Any = np.dtype(np.float32 if kind == "f32" else np.float16)
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, math.prod(tensor.shape) * dtype.itemsize, raw)
    else:
        shape = quant_shape_to_byte_shape(tensor.shape, raw)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), math.prod(shape), raw)


def _encode(tensor: Tensor, kind: Kind) -> Encoded:
    """The tensor's numbers in a type of the file."""
    tensor = tensor.contiguous()
    if kind in ("f32", "f16"):
        plain: Encoded = tensor.to(torch.float32 if kind == "f32" else torch.float16).numpy()
        return plain
    if kind == "bf16":
        halves: Encoded = tensor.to(torch.bfloat16).view(torch.uint8).numpy()
        return halves
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    blocks: Encoded = quantize(tensor.float().numpy(), GGMLQuantizationType.Q8_0)
    return blocks


def _add(writer: Any, key: str, value: Any) -> None:
    """One key of the metadata, in the type that llama.cpp expects of its kind."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
