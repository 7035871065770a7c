"""The architecture of a model, in terms that no family owns, and what it costs in closed form. No torch.

`ModelConfig` is what the transformer is built from. Families (`llmkit.model.families`) translate it from and to the
`config.json` of a Hugging Face directory; `ModelSpec` (`llmkit.model.spec`) is the short form that a person writes.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Head = Literal["causal-lm", "masked-lm", "classification", "reward"]


class RopeScaling(BaseModel):
    """How rotary frequencies are changed to reach contexts beyond the one first trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["linear", "llama3"] = Field(
        description="linear: all frequencies divided by `factor`; llama3: only the low ones, blended in between."
    )
    factor: float = Field(ge=1.0, description="How many times longer the context becomes.")
    low_freq_factor: float = Field(1.0, gt=0, description="llama3: wavelengths above original/low are scaled.")
    high_freq_factor: float = Field(4.0, gt=0, description="llama3: wavelengths below original/high are kept.")
    original_context: int = Field(8192, ge=1, description="llama3: the context before scaling, in tokens.")

    @model_validator(mode="after")
    def _band_is_ordered(self) -> Self:
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("low_freq_factor must be below high_freq_factor")
        return self


class ModelConfig(BaseModel):
    """A transformer's architecture, its head and its special tokens; immutable.

    Widths are in features, `context` in tokens. `mlp_width` is the width between the two halves of a block's MLP.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=False)

    family: str
    head: Head
    labels: tuple[str, ...] = ()

    vocab_size: int = Field(ge=1)
    width: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_width: int = Field(ge=1)
    mlp_width: int = Field(ge=1)
    context: int = Field(ge=1)

    causal: bool
    norm: Literal["rms", "layer"]
    norm_eps: float = Field(gt=0)
    norm_position: Literal["pre", "post"]
    positions: Literal["rotary", "learned"]
    rope_theta: float = Field(10000.0, gt=0)
    rope_scaling: RopeScaling | None = None
    experts: int = Field(0, ge=0, le=4096)
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"]
    gated_mlp: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    token_types: int = Field(0, ge=0)
    embedding_norm: bool = False
    tie_embeddings: bool = True

    embedding_dropout: float = Field(0.0, ge=0, lt=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    head_dropout: float = Field(0.0, ge=0, lt=1)
    init_std: float = Field(0.02, ge=0)
    scaled_residual_init: bool = False

    pad_id: int | None = Field(None, ge=0)
    bos_id: int | None = Field(None, ge=0)
    eos_ids: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(f"rotary positions need an even head width, not {self.head_width}")
        if self.head == "classification" and len(self.labels) < 2:
            raise ValueError("a classification head needs at least two labels; one score is a reward head")
        if self.head != "classification" and self.labels:
            raise ValueError(f"a {self.head} head has no labels")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ from each other")
        if self.head == "causal-lm" and not self.causal:
            raise ValueError(f"family {self.family} sees both directions and has no causal-lm head")
        if self.head == "masked-lm" and self.causal:
            raise ValueError(f"family {self.family} is causal and has no masked-lm head")
        return self

    def with_head(self, head: Head, labels: tuple[str, ...] = ()) -> ModelConfig:
        """The same body under another head; raises ValueError where the family cannot carry it."""
        return self.model_validate({**self.model_dump(), "head": head, "labels": labels})

    def _linear(self, inputs: int, outputs: int, bias: bool) -> int:
        return inputs * outputs + (outputs if bias else 0)

    def _norm_parameters(self) -> int:
        return self.width * (2 if self.norm == "layer" else 1)

    def _block_parameters(self) -> int:
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        attention = self._linear(self.width, queries + 2 * keys, self.qkv_bias)
        attention += self._linear(queries, self.width, self.output_bias)
        mlp = self._linear(self.width, self.mlp_width, self.mlp_bias) * (2 if self.gated_mlp else 1)
        mlp += self._linear(self.mlp_width, self.width, self.mlp_bias)
        return attention + mlp + 2 * self._norm_parameters()

    def _head_parameters(self) -> int:
        projection = 0 if self.tie_embeddings else self.vocab_size * self.width
        if self.head == "causal-lm":
            return projection
        if self.head == "masked-lm":
            transform = self._linear(self.width, self.width, True) + self._norm_parameters()
            return transform + projection + self.vocab_size
        outputs = len(self.labels) if self.head == "classification" else 1
        if self.causal:
            return self.width * outputs
        return self._linear(self.width, self.width, True) + self._linear(self.width, outputs, True)

    def parameter_count(self) -> int:
        """The number of parameters, head included, shared ones counted once."""
        embeddings = (self.vocab_size + self.token_types) * self.width
        embeddings += self.context * self.width if self.positions == "learned" else 0
        embeddings += self._norm_parameters() if self.embedding_norm else 0
        final_norm = self._norm_parameters() if self.norm_position == "pre" else 0
        return embeddings + self.layers * self._block_parameters() + final_norm + self._head_parameters()

    def _head_flops(self, length: int) -> int:
        """Forward FLOPs of the head on one sequence; sequence heads work on one of its tokens only."""
        if self.head in ("causal-lm", "masked-lm"):
            transform = self.width * self.width if self.head == "masked-lm" else 0
            return 2 * length * (transform + self.width * self.vocab_size)
        outputs = len(self.labels) if self.head == "classification" else 1
        pooler = 0 if self.causal else self.width * self.width
        return 2 * (pooler + self.width * outputs)

    def flops_per_sequence(self, length: int, *, backward: bool = True) -> int:
        """Matrix-multiplication FLOPs of one sequence of `length` tokens.

        A multiply-add is two FLOPs; the backward pass costs twice the forward one. Attention is counted over all
        pairs of tokens, causal or not, as in PaLM (Chowdhery et al. 2022, appendix B).
        """
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        projections = self.width * (2 * queries + 2 * keys)
        mlp = self.width * self.mlp_width * (3 if self.gated_mlp else 2)
        scores = 2 * queries * length
        forward = 2 * length * self.layers * (projections + mlp + scores) + self._head_flops(length)
        return 3 * forward if backward else forward

    def flops_per_token(self, length: int, *, backward: bool = True) -> float:
        """`flops_per_sequence` over its tokens: about 6 N + 12 layers x width x length when training."""
        return self.flops_per_sequence(length, backward=backward) / length

    def cache_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes that the key/value cache takes for each token of each sequence."""
        return 2 * self.layers * self.kv_heads * self.head_width * bytes_per_value
