"""What a person writes under `model:` to have a new model made, and its resolution to a full architecture. No torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, WithJsonSchema, field_validator

from llmkit.model.config import Head, ModelConfig
from llmkit.model.families import FAMILIES, nearest_family

_FAMILY_SCHEMA = WithJsonSchema({"type": "string", "enum": list(FAMILIES)})


class ModelSpec(BaseModel):
    """The shape of a new model, to be trained from random weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    family: Annotated[str, _FAMILY_SCHEMA] = Field(
        description="Decoders, such as llama, gemma3_text or gpt2, write text; encoders, such as bert, read it."
    )
    layers: int = Field(ge=1, le=1000, description="Number of transformer blocks.")
    width: int = Field(ge=1, le=1_000_000, description="Features of each token's representation.")
    heads: int | None = Field(
        None,
        ge=1,
        validate_default=True,
        description="Attention heads; by default as many as make them 64 wide, or 32.",
    )
    kv_heads: int | None = Field(
        None, ge=1, description="Key/value heads shared by groups of heads; by default as many as heads."
    )
    head_width: int | None = Field(
        None, ge=1, validate_default=True, description="Features of one head; by default width / heads."
    )
    mlp_width: int | None = Field(
        None,
        ge=1,
        description="Inner width of each MLP; by default 4 x width, or 8/3 x width where they have three matrices.",
    )
    context: int | None = Field(
        None, ge=1, description="Longest sequence in tokens; by default 2048 for most decoders, gpt2 1024, bert 512."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of activations dropped in training.")
    tie_embeddings: bool = Field(True, description="Use the token embedding as output projection too.")
    rope_theta: float | None = Field(
        None, gt=0, description="Base of the rotary wavelengths; by default that of the family's published models."
    )
    window: int | None = Field(
        None, ge=1, description="Tokens that local layers see, in families that have such; by default the family's."
    )
    qk_norm: bool | None = Field(
        None, description="Norms of queries and keys: the family has them or not; written out, it is checked."
    )
    score_softcap: float | None = Field(
        None,
        gt=0,
        description="Attention scores become cap x tanh(score / cap), in families that have such; gemma2 50.",
    )
    logit_softcap: float | None = Field(None, gt=0, description="The same for logits; by default gemma2 30.")
    experts: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Routed MLPs in each layer, in families that have such; by default mixtral 8, others 32.",
    )
    experts_per_token: int | None = Field(
        None,
        ge=1,
        validate_default=True,
        description="How many of them each token goes through; by default mixtral 2, others 4.",
    )
    expert_width: int | None = Field(
        None, ge=1, description="Inner width of each of them; mixtral's and gpt_oss's layers have no other MLPs."
    )
    router_loss_weight: float | None = Field(
        None, ge=0, description="Weight of the loss that keeps the use of experts even, in training; by default 0.01."
    )
    init_std: float = Field(0.02, gt=0, le=1, description="Standard deviation of the initial weights.")

    @field_validator("family", mode="before")
    @classmethod
    def _known_family(cls, family: Any) -> Any:
        if isinstance(family, str) and family not in FAMILIES:
            raise ValueError(
                f"unknown family {family!r}; known are {', '.join(FAMILIES)}; the nearest is {nearest_family(family)}"
            )
        return family

    @field_validator("heads")
    @classmethod
    def _heads_divide_width(cls, heads: int | None, info: ValidationInfo) -> int | None:
        width = info.data.get("width")
        if width is None:
            return heads
        if heads is None and _default_heads(width) is None:
            raise ValueError(f"no usual head width divides width {width}: give the number of heads")
        if heads is not None and width % heads:
            raise ValueError(
                f"{heads} heads do not divide width {width}; the nearest that does is {_divisor(width, heads)}"
            )
        return heads

    @field_validator("kv_heads")
    @classmethod
    def _kv_heads_divide_heads(cls, kv_heads: int | None, info: ValidationInfo) -> int | None:
        heads = info.data.get("heads") or _default_heads(info.data.get("width") or 0)
        if kv_heads is not None and heads and heads % kv_heads:
            raise ValueError(
                f"{kv_heads} kv_heads do not divide {heads} heads; the nearest is {_divisor(heads, kv_heads)}"
            )
        return kv_heads

    @field_validator("head_width")
    @classmethod
    def _rotary_needs_even_heads(cls, head_width: int | None, info: ValidationInfo) -> int | None:
        family, width = FAMILIES.get(info.data.get("family", "")), info.data.get("width")
        heads = info.data.get("heads") or _default_heads(width or 0)
        if family is None or family.parts["positions"] != "rotary" or not width or not heads:
            return head_width
        actual = head_width or width // heads
        if actual % 2:
            raise ValueError(f"family {family.name} rotates pairs of features: a head width of {actual} is odd")
        return head_width

    @field_validator(
        "kv_heads",
        "head_width",
        "rope_theta",
        "window",
        "score_softcap",
        "logit_softcap",
        "experts",
        "experts_per_token",
        "expert_width",
        "router_loss_weight",
    )
    @classmethod
    def _applies_to_family(cls, value: Any, info: ValidationInfo) -> Any:
        family = FAMILIES.get(info.data.get("family", ""))
        if value is not None and family is not None and info.field_name not in family.options:
            able = [name for name, other in FAMILIES.items() if info.field_name in other.options]
            raise ValueError(
                f"family {family.name} has no {info.field_name}; remove it, or take one that has: {', '.join(able)}"
            )
        return value

    @field_validator("qk_norm")
    @classmethod
    def _is_of_family(cls, qk_norm: bool | None, info: ValidationInfo) -> bool | None:
        family = FAMILIES.get(info.data.get("family", ""))
        if qk_norm is None or family is None:
            return qk_norm
        able = [name for name, other in FAMILIES.items() if other.parts.get("qk_norm", "none") != "none"]
        if qk_norm and family.name not in able:
            raise ValueError(f"family {family.name} has no norms of queries and keys; these have: {', '.join(able)}")
        if not qk_norm and family.name in able:
            raise ValueError(f"family {family.name} always has norms of queries and keys")
        return qk_norm

    @field_validator("mlp_width")
    @classmethod
    def _has_dense_layers(cls, mlp_width: int | None, info: ValidationInfo) -> int | None:
        family = FAMILIES.get(info.data.get("family", ""))
        if mlp_width is not None and family is not None and "mlp_width" not in family.spec_defaults:
            raise ValueError(f"family {family.name} has no mlp_width; the width of its MLPs is expert_width")
        return mlp_width

    @field_validator("experts_per_token")
    @classmethod
    def _enough_experts(cls, experts_per_token: int | None, info: ValidationInfo) -> int | None:
        family = FAMILIES.get(info.data.get("family", ""))
        if family is None or "experts" not in family.options:
            return experts_per_token
        experts = info.data.get("experts") or family.spec_defaults["experts"]
        chosen = experts_per_token or family.spec_defaults["experts_per_token"]
        if chosen > experts:  # type: ignore[operator]
            raise ValueError(f"a token cannot go through {chosen} of {experts} experts")
        return experts_per_token

    def resolve(
        self,
        vocab_size: int,
        *,
        pad_id: int | None,
        bos_id: int | None = None,
        eos_ids: tuple[int, ...] = (),
        head: Head | None = None,
        labels: tuple[str, ...] = (),
    ) -> ModelConfig:
        """The full architecture for a tokenizer of `vocab_size` tokens, with the family's own head by default.

        Raises:
            ValueError: the family has no such head, or a special id lies outside the vocabulary.
        """
        family = FAMILIES[self.family]
        outside = [i for i in (pad_id, bos_id, *eos_ids) if i is not None and not 0 <= i < vocab_size]
        if outside:
            raise ValueError(f"special token ids {outside} lie outside the vocabulary of {vocab_size}")
        heads = self.heads or _default_heads(self.width)
        assert heads is not None
        values: dict[str, Any] = {
            **family.parts,
            "family": self.family,
            "head": head or family.own_head(),
            "labels": labels,
            "vocab_size": vocab_size,
            "layers": self.layers,
            "width": self.width,
            "heads": heads,
            "kv_heads": self.kv_heads or heads,
            "head_width": self.head_width or self.width // heads,
            "tie_embeddings": self.tie_embeddings,
            "rope_theta": self.rope_theta or 10000.0,
            "window": self.window,
            "embedding_dropout": self.dropout,
            "dropout": self.dropout,
            "attention_dropout": self.dropout,
            "head_dropout": 0.0 if family.parts["causal"] else self.dropout,
            "init_std": self.init_std,
            "pad_id": pad_id,
            "bos_id": bos_id,
            "eos_ids": eos_ids,
        }
        for name, default in family.spec_defaults.items():
            chosen = getattr(self, name, None)
            values[name] = chosen if chosen is not None else default(self.width) if callable(default) else default
        if family.complete is not None:
            family.complete(values)
        return ModelConfig.model_validate(values)


def _default_heads(width: int) -> int | None:
    """As many heads as make them 64 wide, or the next smaller power of two that divides the width."""
    usual = 64 if width >= 128 else 32
    return next((width // head for head in (usual, 32, 16, 8) if width and width % head == 0), None)


def _divisor(number: int, wanted: int) -> int:
    """The divisor of `number` nearest to `wanted`, the smaller of two."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - wanted), d))
