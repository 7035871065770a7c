"""How GGUF files name the settings and weights of each architecture. No torch.

GGUF uses one set of names for all architectures, as this package does, so one table serves them all; an architecture
declares where it departs from it. To add one, add a value to `ARCHITECTURES`: its name, the families that are written
as it, where its weights' names differ, and a function for settings that it implies without naming them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmkit.model.families.base import Weight, weights
from llmkit.store.gguf import GGUFFile

Values = dict[str, Any]

SETTINGS: Mapping[str, tuple[str, type]] = {
    "context": ("context_length", int),
    "width": ("embedding_length", int),
    "layers": ("block_count", int),
    "mlp_width": ("feed_forward_length", int),
    "heads": ("attention.head_count", int),
    "kv_heads": ("attention.head_count_kv", int),
    "head_width": ("attention.key_length", int),
    "rope_theta": ("rope.freq_base", float),
    "local_rope_theta": ("rope.freq_base_swa", float),
    "window": ("attention.sliding_window", int),
    "score_softcap": ("attn_logit_softcapping", float),
    "logit_softcap": ("final_logit_softcapping", float),
    "experts": ("expert_count", int),
    "experts_per_token": ("expert_used_count", int),
    "expert_width": ("expert_feed_forward_length", int),
    "parallel_residual": ("use_parallel_residual", bool),
}
"""ModelConfig settings, and the keys (after "llama." and the like) and kinds of their values in the metadata."""

EPSILON = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
"""The key of the norms' epsilon, by their kind."""
ROTATED = "rope.dimension_count"
PATTERN = "attention.sliding_window_pattern"
"""Which layers have a window: a truth value for each, or a number n, for all but every n-th."""

_NAMES: Mapping[str, str] = {
    "embeddings.token": "token_embd",
    "embeddings.position": "position_embd",
    "norm": "output_norm",
    "head.projection": "output",
    "blocks.{i}.attention_norm": "blk.{i}.attn_norm",
    "blocks.{i}.attention.query": "blk.{i}.attn_q",
    "blocks.{i}.attention.key": "blk.{i}.attn_k",
    "blocks.{i}.attention.value": "blk.{i}.attn_v",
    "blocks.{i}.attention.query_norm": "blk.{i}.attn_q_norm",
    "blocks.{i}.attention.key_norm": "blk.{i}.attn_k_norm",
    "blocks.{i}.attention.sinks": "blk.{i}.attn_sinks.weight",
    "blocks.{i}.attention.output": "blk.{i}.attn_output",
    "blocks.{i}.attention_output_norm": "blk.{i}.post_attention_norm",
    "blocks.{i}.mlp_norm": "blk.{i}.ffn_norm",
    "blocks.{i}.mlp.gate": "blk.{i}.ffn_gate",
    "blocks.{i}.mlp.up": "blk.{i}.ffn_up",
    "blocks.{i}.mlp.down": "blk.{i}.ffn_down",
    "blocks.{i}.mlp.router": "blk.{i}.ffn_gate_inp",
    "blocks.{i}.mlp.experts.gate": "blk.{i}.ffn_gate_exps",
    "blocks.{i}.mlp.experts.up": "blk.{i}.ffn_up_exps",
    "blocks.{i}.mlp.experts.down": "blk.{i}.ffn_down_exps",
    "blocks.{i}.mlp_output_norm": "blk.{i}.post_ffw_norm",
}


def _weights(*others: Weight) -> tuple[Weight, ...]:
    """The names that all share, but for those of `others`."""
    taken = {name for weight in others for name in weight.ours}
    return (*weights({ours: theirs for ours, theirs in _NAMES.items() if ours not in taken}), *others)


_FUSED_QKV = Weight(
    tuple(f"blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")), ("blk.{i}.attn_qkv",)
)
_FUSED_MLP = Weight(("blocks.{i}.mlp.gate", "blocks.{i}.mlp.up"), ("blk.{i}.ffn_up",))


@dataclass(frozen=True)
class Architecture:
    """One architecture of GGUF.

    Attributes:
        name: as in `general.architecture`.
        families: the families that are written as it; a file is read as the first, or as `family` says.
        weights: names of weights: ours, and the file's.
        permuted: whether rows of query and key are in pairs (2d, 2d+1), as llama.cpp rotates them, not in halves.
        windowed: whether llama.cpp computes windows, and not attention to everything.
        tables: beginnings of the names of tensors with rotary factors that llama.cpp reads.
        activation: of its MLPs, which files do not name.
        fixed: settings that llama.cpp has no choice of.
        family: chooses the family of a file.
        complete: sets what the architecture implies; raises ValueError where a file's settings are not those of ours.
    """

    name: str
    families: tuple[str, ...]
    weights: tuple[Weight, ...] = _weights()
    permuted: bool = False
    windowed: bool = False
    tables: tuple[str, ...] = ()
    activation: str = "silu"
    fixed: Mapping[str, bool] = field(default_factory=dict)
    family: Callable[[GGUFFile], str] | None = None
    complete: Callable[[Values], None] | None = None

    def family_of(self, file: GGUFFile) -> str:
        """The family that a file of this architecture is read as."""
        return self.families[0] if self.family is None else self.family(file)


def _without_window(values: Values) -> None:
    """What llama.cpp computes: everything is attended to, whatever window a file may announce."""
    values.pop("window", None)


def _local_layers(values: Values, global_every: int) -> tuple[int, ...]:
    """The layers with a window, by the file's pattern, otherwise all but every n-th."""
    layers, pattern = range(values["layers"]), values.pop(PATTERN, global_every)
    if isinstance(pattern, int) and pattern > 0:
        return tuple(layer for layer in layers if (layer + 1) % pattern)
    if isinstance(pattern, array) and len(pattern) >= len(layers):
        return tuple(layer for layer in layers if pattern[layer])
    raise ValueError("the pattern of layers with a window is neither a number nor one value for each layer")


def _alternating(values: Values, global_every: int, layers_of_27b: int) -> None:
    """Layers with and without a window; the 27B models alone have scores of another width than their heads."""
    layers, heads = values["layers"], values["heads"]
    values["local_layers"] = _local_layers(values, global_every)
    wide = layers == layers_of_27b and values["width"] / heads != values["head_width"]
    values["score_width"] = values["width"] / heads if wide else None


def _gemma2(values: Values) -> None:
    values.setdefault("window", 4096)
    values.setdefault("score_softcap", 50.0)
    values.setdefault("logit_softcap", 30.0)
    _alternating(values, 2, 46)


def _gemma3(values: Values) -> None:
    _alternating(values, 6, 62)
    values.setdefault("local_rope_theta", 10000.0)
    if "window" not in values:
        values["local_layers"] = ()


def _olmo2(values: Values) -> None:
    if values.pop("window", None):
        raise ValueError("this is OLMo 3, whose windows are not supported")


def _phi3(values: Values) -> None:
    # The models were trained with it, although llama.cpp leaves it out.
    if values.get("window", values["context"]) >= values["context"]:
        _without_window(values)
    else:
        values["local_layers"] = tuple(range(values["layers"]))


def _llama_family(file: GGUFFile) -> str:
    return "mixtral" if file.get("llama.expert_count", int, 0) else "llama"


def _llama(values: Values) -> None:
    _without_window(values)
    if values.get("experts"):
        values.setdefault("expert_width", values["mlp_width"])


def _qwen3moe(values: Values) -> None:
    _without_window(values)
    values["renormalize_experts"] = True


def _gpt_oss(values: Values) -> None:
    values["local_layers"] = _local_layers(values, 2)
    if values.get("rope_scaling"):
        values["rope_scaling"]["truncate"] = False


_NO_BIAS = {"qkv_bias": False, "output_bias": False, "mlp_bias": False}
_BIAS = dict.fromkeys(_NO_BIAS, True)
_QKV_BIAS_ALONE = {"output_bias": False, "mlp_bias": False}

_ALL = (
    Architecture(
        "llama", ("llama", "mistral", "mixtral"), permuted=True, tables=("rope_freqs", "rope_factors"),
        family=_llama_family, complete=_llama,
    ),
    Architecture("qwen2", ("qwen2",), fixed=_QKV_BIAS_ALONE, complete=_without_window),
    Architecture("qwen3", ("qwen3",), fixed=_QKV_BIAS_ALONE, complete=_without_window),
    Architecture("qwen3moe", ("qwen3_moe",), fixed=_QKV_BIAS_ALONE, complete=_qwen3moe),
    Architecture("gemma", ("gemma",), activation="gelu_tanh", fixed=_NO_BIAS | {"tie_embeddings": True}),
    Architecture(
        "gemma2", ("gemma2",), windowed=True, activation="gelu_tanh", fixed=_NO_BIAS | {"tie_embeddings": True},
        complete=_gemma2,
    ),
    Architecture("gemma3", ("gemma3_text",), windowed=True, activation="gelu_tanh", fixed=_NO_BIAS, complete=_gemma3),
    Architecture(
        "phi3", ("phi3",), _weights(_FUSED_QKV, _FUSED_MLP), tables=("rope_factors",), fixed=_NO_BIAS, complete=_phi3
    ),
    Architecture("gpt2", ("gpt2",), _weights(_FUSED_QKV), activation="gelu_tanh", fixed=_BIAS),
    Architecture("olmo2", ("olmo2",), fixed=_NO_BIAS | {"tie_embeddings": False}, complete=_olmo2),
    Architecture(
        "gptneox", ("gpt_neox",), _weights(_FUSED_QKV), activation="gelu", fixed=_BIAS | {"tie_embeddings": False}
    ),
    Architecture(
        "gpt-oss", ("gpt_oss",), _weights(Weight(("blocks.{i}.mlp_norm",), ("blk.{i}.post_attention_norm",))),
        windowed=True, activation="clamped_swiglu", complete=_gpt_oss,
        fixed={"qkv_bias": True, "output_bias": True, "expert_bias": True, "tie_embeddings": False},
    ),
)  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = {architecture.name: architecture for architecture in _ALL}


def architecture_of(family: str) -> Architecture | None:
    """The architecture that models of a family are written as, or None."""
    return next((found for found in _ALL if family in found.families), None)
