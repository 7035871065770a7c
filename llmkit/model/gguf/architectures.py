"""How GGUF files name the settings and weights of each architecture. No torch.

GGUF uses one set of names for all architectures, as this package does, so one table serves them all; an architecture
declares where it departs from it. To add one, add a value to `ARCHITECTURES`: its name, the families that are written
as it, which weights it keeps fused, and a function for settings that it implies without naming them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.model.config import ModelConfig
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

_QKV = tuple(f"blocks.{{i}}.attention.{part}" for part in ("query", "key", "value"))
_APART: Mapping[str, str] = {
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
    "blocks.{i}.attention.output": "blk.{i}.attn_output",
    "blocks.{i}.attention_output_norm": "blk.{i}.post_attention_norm",
    "blocks.{i}.mlp_norm": "blk.{i}.ffn_norm",
    "blocks.{i}.mlp.gate": "blk.{i}.ffn_gate",
    "blocks.{i}.mlp.up": "blk.{i}.ffn_up",
    "blocks.{i}.mlp.down": "blk.{i}.ffn_down",
    "blocks.{i}.mlp_output_norm": "blk.{i}.post_ffw_norm",
}


def _weights(*fused: Weight) -> tuple[Weight, ...]:
    taken = {name for weight in fused for name in weight.ours}
    return (*weights({ours: theirs for ours, theirs in _APART.items() if ours not in taken}), *fused)


_FUSED_QKV = Weight(_QKV, ("blk.{i}.attn_qkv",))
_FUSED_MLP = Weight(("blocks.{i}.mlp.gate", "blocks.{i}.mlp.up"), ("blk.{i}.ffn_up",))


@dataclass(frozen=True)
class Architecture:
    """One architecture of GGUF.

    Attributes:
        name: as in `general.architecture`.
        families: the families that are written as it; a file is read as the first, or as `family` says.
        weights: names of weights: ours, and the file's.
        permuted: whether rows of query and key are in pairs (2d, 2d+1), as llama.cpp rotates them, not in halves.
        family: chooses the family of a file.
        complete: fills in what the architecture implies.
        refuse: says what of a config a file of the architecture cannot express, if anything.
    """

    name: str
    families: tuple[str, ...]
    weights: tuple[Weight, ...] = _weights()
    permuted: bool = False
    family: Callable[[GGUFFile], str] | None = None
    complete: Callable[[Values], None] | None = None
    refuse: Callable[[ModelConfig], str | None] | None = None

    def family_of(self, file: GGUFFile) -> str:
        """The family that a file of this architecture is read as."""
        return self.families[0] if self.family is None else self.family(file)


def _alternating(global_every: int) -> Callable[[Values], None]:
    """Layers with a window, but for every n-th; the 27B models alone have scores of another width than their heads."""

    def complete(values: Values) -> None:
        layers = values["layers"]
        values["local_layers"] = tuple(layer for layer in range(layers) if (layer + 1) % global_every)
        large = {2: 46, 6: 62}[global_every]
        values["score_width"] = values["width"] / values["heads"] if layers == large else values["head_width"]

    return complete


def _gemma2(values: Values) -> None:
    values["window"] = values.get("window") or 4096
    _alternating(2)(values)


def _gemma3(values: Values) -> None:
    if values.get("window"):
        _alternating(6)(values)
        values["local_rope_theta"] = 10000.0
    values["rope_theta"] = values.get("rope_theta") or 1_000_000.0


def _no_window(values: Values) -> None:
    # llama.cpp's own graphs of these architectures attend to everything; so do files that announce a window.
    values.pop("window", None)


def _refuse_window(config: ModelConfig) -> str | None:
    if config.local_layers and config.window is not None and config.window < config.context:
        return f"a sliding window of {config.window} tokens"
    return None


def _refuse_other_alternation(complete: Callable[[Values], None]) -> Callable[[ModelConfig], str | None]:
    """Refuse a config that a file of the architecture would be read back as something else."""

    def refuse(config: ModelConfig) -> str | None:
        implied = {name: getattr(config, name) for name in ("layers", "width", "heads", "head_width", "window")}
        implied["rope_theta"] = config.rope_theta
        complete(implied)
        for name in ("local_layers", "local_rope_theta", "window"):
            if implied.get(name, getattr(ModelConfig.model_fields[name], "default", None)) != getattr(config, name):
                return f"{name} {getattr(config, name)}"
        if float(config.score_width or config.head_width) != float(implied.get("score_width") or config.head_width):
            return f"score_width {config.score_width}"
        return None

    return refuse


def _llama_family(file: GGUFFile) -> str:
    return "mixtral" if file.get("llama.expert_count", int, 0) else "llama"


def _mixtral(values: Values) -> None:
    _no_window(values)
    if values.get("experts"):
        values["expert_width"] = values.get("expert_width") or values["mlp_width"]


_ALL = (
    Architecture(
        "llama", ("llama", "mistral", "mixtral"), permuted=True, family=_llama_family, complete=_mixtral,
        refuse=_refuse_window,
    ),
    Architecture("qwen2", ("qwen2",), complete=_no_window, refuse=_refuse_window),
    Architecture("qwen3", ("qwen3",), complete=_no_window, refuse=_refuse_window),
    Architecture("qwen3moe", ("qwen3_moe",), complete=_no_window, refuse=_refuse_window),
    Architecture("gemma", ("gemma",)),
    Architecture("gemma2", ("gemma2",), complete=_gemma2, refuse=_refuse_other_alternation(_gemma2)),
    Architecture("gemma3", ("gemma3", "gemma3_text"), complete=_gemma3, refuse=_refuse_other_alternation(_gemma3)),
    Architecture(
        "phi3", ("phi3",), _weights(_FUSED_QKV, _FUSED_MLP), complete=_no_window, refuse=_refuse_window
    ),
    Architecture("gpt2", ("gpt2",), _weights(_FUSED_QKV)),
    Architecture("olmo2", ("olmo2",)),
    Architecture("gptneox", ("gpt_neox",), _weights(_FUSED_QKV)),
)  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = {architecture.name: architecture for architecture in _ALL}


def architecture_of(config: ModelConfig) -> Architecture | None:
    """The architecture that models of the config's family are written as, or None."""
    return next((found for found in _ALL if config.family in found.families), None)
