"""What an adapter is made of, and which modules it stands on. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal, TypeVar

from pydantic import Field, field_validator

from llmkit.config.base import Config, nearest
from llmkit.errors import ConfigError
from llmkit.model.quantization.config import BITS, Quantization

Kind = Literal["lora", "rslora", "dora", "rsdora"]
Initialization = Literal["kaiming", "gaussian"]
Pattern = Annotated[str, Field(min_length=1)]
Rank = Annotated[int, Field(ge=1, le=8192)]
Alpha = Annotated[float, Field(gt=0, le=1e6)]
Value = TypeVar("Value")

ALL_LINEAR = "all-linear"
"""The pattern of every linear map inside the blocks."""


class AdapterConfig(Config):
    """A low-rank change of chosen linear maps, W + scale x B A, while W itself stays as it is.

    A pattern names modules as llmkit does, with `*` for anything: `attention.*`, `mlp.*`, `attention.query`,
    `blocks.3.mlp.up`, or `all-linear`.
    """

    kind: Kind = "lora"
    """lora: scale = alpha / rank (Hu et al. 2021). rslora: alpha / sqrt(rank), so that higher ranks learn as fast
    (Kalajdzievski 2023). dora: as lora, with the length of each row of the result learned apart from its direction
    (Liu et al. 2024). rsdora: both."""
    rank: Rank = 16
    """Rows of A and columns of B: how much the change can express, and what it costs."""
    alpha: Alpha = 32.0
    """How strongly the change counts; see `kind`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the inputs of A dropped in training."""
    targets: list[Pattern] = Field(default=[ALL_LINEAR], min_length=1)
    """Patterns of the linear maps that are changed."""
    layers: str | None = None
    """Numbers of the blocks that are changed, such as "0-3,8" or "20-"; all by default."""
    ranks: dict[Pattern, Rank] = Field(default={})
    """Ranks of the maps that match a pattern, in place of `rank`; the first pattern that matches counts."""
    alphas: dict[Pattern, Alpha] = Field(default={})
    """The same for `alpha`."""
    initialization: Initialization = "kaiming"
    """How A begins: uniform within 1/sqrt(inputs), or normal with standard deviation 1/rank. B begins at zero, so that
    an untrained adapter changes nothing."""
    trainable: list[Pattern] = Field(default=[])
    """Patterns of other modules that are trained in full and saved with the adapter, such as `embeddings.token`. A head
    that is new in this model is always among them."""

    @field_validator("layers")
    @classmethod
    def _ranges(cls, value: str | None) -> str | None:
        if value is not None:
            _parse_layers(value)
        return value

    def scale(self, rank: int, alpha: float) -> float:
        """What B A is multiplied with."""
        return alpha / rank**0.5 if self.kind in ("rslora", "rsdora") else alpha / rank

    @property
    def learns_magnitude(self) -> bool:
        """Whether the length of each row of the result is learned apart."""
        return self.kind in ("dora", "rsdora")

    def rank_of(self, name: str) -> int:
        """Rank of the adapter on a module."""
        return _first_match(self.ranks, name, self.rank)

    def alpha_of(self, name: str) -> float:
        """Alpha of the adapter on a module."""
        return _first_match(self.alphas, name, self.alpha)

    def select(self, linears: Sequence[str], layers: int) -> list[str]:
        """The linear maps, out of the model's, that the adapter stands on.

        Args:
            linears: names of the model's linear maps.
            layers: number of the model's blocks.

        Raises:
            ConfigError: a pattern matches nothing, or there is no such block.
        """
        chosen = _parse_layers(self.layers) if self.layers is not None else [(0, layers - 1)]
        last = max(max(first, end or 0) for first, end in chosen)
        if last >= layers:
            raise ConfigError(
                f"adapter.layers: there is no block {last}; the model's {layers} blocks count from 0 to {layers - 1}."
            )
        inside = [name for name in linears if _in_layers(name, chosen)]
        for pattern in (*self.targets, *self.ranks, *self.alphas):
            if not any(matches(pattern, name) for name in inside):
                raise no_match(pattern, linears, "linear map")
        return [name for name in inside if any(matches(pattern, name) for pattern in self.targets)]


BaseDtype = Literal["fp32", "bf16", "int8", "nf4"]
_QUANTIZATIONS: dict[BaseDtype, Quantization] = {"int8": "int8", "nf4": "nf4"}


class AdapterTraining(AdapterConfig):
    """An adapter that a stage trains in place of the whole model."""

    base_dtype: BaseDtype = "fp32"
    """How the frozen weights are kept: bf16 takes half of fp32's memory, int8 a quarter, nf4 an eighth (QLoRA, Dettmers
    et al. 2023; needs the extra `quantization`). But for fp32, training computes in bf16 unless `precision` says
    otherwise, and the merged model is saved in bf16."""
    merge: bool = True
    """Save the model with the adapter merged into it (`model/`) beside the adapter (`adapter/`), so that every later
    stage and other tool opens it. Without, there is the adapter alone, which `llmkit generate` and `chat` open."""

    @property
    def quantization(self) -> Quantization | None:
        """How the linear maps of the frozen blocks are quantized, if they are."""
        return _QUANTIZATIONS.get(self.base_dtype)

    def parameter_count(self, linears: Mapping[str, Sequence[int]], layers: int) -> int:
        """Parameters of the adapter itself.

        Args:
            linears: inputs and outputs of a block's linear maps, by name within the block.
            layers: number of blocks.

        Raises:
            ConfigError: as for `select`.
        """
        shapes = {f"blocks.{layer}.{name}": shape for layer in range(layers) for name, shape in linears.items()}
        total = 0
        for name in self.select(list(shapes), layers):
            inputs, outputs = shapes[name]
            total += self.rank_of(name) * (inputs + outputs) + (outputs if self.learns_magnitude else 0)
        return total

    def base_bytes(self, parameters: int, linears: Mapping[str, Sequence[int]], layers: int) -> int:
        """Bytes of the frozen weights; what is in no linear map of a block is not quantized."""
        kind = self.quantization
        if kind is None:
            return parameters * (4 if self.base_dtype == "fp32" else 2)
        inside = layers * sum(inputs * outputs for inputs, outputs in linears.values())
        return int(inside * BITS[kind] / 8) + 2 * (parameters - inside)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern means a module: by its whole name, or by what follows the number of its block."""
    short = within_block(name)
    if pattern == ALL_LINEAR:
        return short is not None
    return fnmatchcase(name, pattern) or (short is not None and fnmatchcase(short, pattern))


def within_block(name: str) -> str | None:
    """A module's name without that of its block ("attention.query"); None outside of blocks."""
    parts = name.split(".", 2)
    return parts[2] if parts[0] == "blocks" and len(parts) == 3 else None


def no_match(pattern: str, names: Iterable[str], what: str) -> ConfigError:
    """The error of a pattern that matches nothing."""
    known = list(dict.fromkeys(within_block(name) or name for name in names))
    guess = nearest(pattern, known)
    shown = f"There are {', '.join(known)}."
    return ConfigError(
        f"adapter: `{pattern}` matches no {what} of the model.",
        hint=f"Did you mean `{guess}`? {shown}" if guess else shown,
    )


def _first_match(patterns: Mapping[str, Value], name: str, default: Value) -> Value:
    return next((value for pattern, value in patterns.items() if matches(pattern, name)), default)


def _in_layers(name: str, chosen: Sequence[tuple[int, int | None]]) -> bool:
    if within_block(name) is None:
        return True
    layer = int(name.split(".", 2)[1])
    return any(first <= layer and (end is None or layer <= end) for first, end in chosen)


def _parse_layers(text: str) -> list[tuple[int, int | None]]:
    """Ranges as (first, last), both included; last is None where the range is open."""
    ranges: list[tuple[int, int | None]] = []
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise ValueError(f"{text!r} are no ranges of blocks; write them like '0-3,8' or '20-'")
        end = (int(last) if last else None) if dash else int(first)
        if end is not None and end < int(first):
            raise ValueError(f"the range {part!r} is empty")
        ranges.append((int(first), end))
    return ranges
