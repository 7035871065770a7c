"""The architecture of a model, in terms that no family owns, and what it costs in closed form. No torch.

`ModelConfig` is what the transformer is built from. Families (`llmkit.model.families`) translate it from and to the
`config.json` of a Hugging Face directory; `ModelSpec` (`llmkit.model.spec`) is the short form that a person writes.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmkit.model import cost

Head = Literal[
    "causal-lm", "masked-lm", "classification", "token-classification", "question-answering", "reward", "embedding"
]
LABELLED: frozenset[Head] = frozenset({"classification", "token-classification"})
"""Heads with one logit for each label."""


class RopeScaling(BaseModel):
    """How rotary frequencies are changed to reach contexts beyond the one first trained on.

    linear divides all frequencies by `factor` (Chen et al. 2023); dynamic raises the base where a sequence is longer
    than the context (bloc97 2023); yarn divides the low ones, blends in between and scales the rotated features (Peng
    et al. 2023); llama3 divides the low ones and blends (Grattafiori et al. 2024); longrope divides each by a factor
    of its own, from one table up to the original context and another beyond (Ding et al. 2024).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
    factor: float = Field(1.0, ge=1.0, description="How many times longer the context becomes.")
    original_context: int = Field(8192, ge=1, description="The context before scaling, in tokens.")
    low_freq_factor: float = Field(1.0, gt=0, description="llama3: wavelengths above original/low are scaled.")
    high_freq_factor: float = Field(4.0, gt=0, description="llama3: wavelengths below original/high are kept.")
    beta_fast: float = Field(32.0, gt=0, description="yarn: frequencies with more turns in the original are kept.")
    beta_slow: float = Field(1.0, gt=0, description="yarn: frequencies with fewer turns are divided by the factor.")
    truncate: bool = Field(True, description="yarn: the blended band begins and ends at whole features.")
    attention_factor: float | None = Field(
        None, gt=0, description="yarn, longrope: multiplies cosines and sines; by default from the factor."
    )
    short_factors: tuple[float, ...] = Field((), description="longrope: divisors up to the original context.")
    long_factors: tuple[float, ...] = Field((), description="longrope: divisors beyond it.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("low_freq_factor must be below high_freq_factor")
        if min((*self.short_factors, *self.long_factors), default=1.0) <= 0:
            raise ValueError("the factors of longrope must be above zero")
        return self

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies of a sequence depend on how long it is."""
        return self.kind in ("dynamic", "longrope")


class ModelConfig(BaseModel):
    """A transformer's architecture, its head and its special tokens; immutable.

    Widths are in features, `context` and `window` in tokens. What the parts mean:

    - norm_position: pre, x + f(norm(x)); post, norm(x + f(x)); output, x + norm(f(x)); sandwich, x + norm(f(norm(x))).
    - norm_offset: norms multiply by 1 + weight. skip_first_norm: the first layer's attention has no norm before it.
    - parallel_residual: attention and MLP of a layer both read the layer's input.
    - position_offset: rows of the learned position table before the first position's.
    - rotary_share: how much of each head is rotated. local_rope_theta: the base in local layers, there unscaled.
    - window, local_layers: these layers see the `window` tokens up to and with their own, or, where the family sees
      both directions, `window` tokens on either side.
    - qk_norm: queries and keys are normalised head by head, or over the whole projection.
    - score_width: attention scores are divided by its square root; by default by that of head_width.
    - score_softcap, logit_softcap: cap * tanh(value / cap). attention_sinks: each head has a learned score of nothing.
    - experts, experts_per_token, expert_width: routed MLPs (0: none), but for dense_layers. renormalize_experts: the
      chosen ones' shares sum to one. router_loss_weight: of the load-balancing loss in training.
    - pooling: which token stands for the sequence. pooler: what maps it before the scores; transform is that of a
      masked-language-model head. transform_bias: whether that has biases.
    - normalize_embedding: embeddings have length 1. embedding_context: how many tokens of a text are embedded, the rest
      is cut; by default the context.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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
    norm_position: Literal["pre", "post", "output", "sandwich"]
    norm_bias: bool = True
    norm_offset: bool = False
    skip_first_norm: bool = False
    parallel_residual: bool = False

    positions: Literal["rotary", "learned"]
    position_offset: int = Field(0, ge=0)
    rope_theta: float = Field(10000.0, gt=0)
    rope_scaling: RopeScaling | None = None
    rotary_share: float = Field(1.0, gt=0, le=1)
    local_rope_theta: float | None = Field(None, gt=0)

    window: int | None = Field(None, ge=1)
    local_layers: tuple[int, ...] = ()
    qk_norm: Literal["none", "head", "projection"] = "none"
    score_width: float | None = Field(None, gt=0)
    score_softcap: float | None = Field(None, gt=0)
    attention_sinks: bool = False
    qkv_bias: bool = False
    output_bias: bool = False

    experts: int = Field(0, ge=0, le=4096)
    experts_per_token: int = Field(0, ge=0)
    expert_width: int = Field(0, ge=0)
    dense_layers: tuple[int, ...] = ()
    renormalize_experts: bool = True
    expert_bias: bool = False
    router_loss_weight: float = Field(0.0, ge=0)

    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "clamped_swiglu"]
    gated_mlp: bool
    mlp_bias: bool = False

    token_types: int = Field(0, ge=0)
    embedding_norm: bool = False
    scale_embeddings: bool = False
    tie_embeddings: bool = True

    logit_softcap: float | None = Field(None, gt=0)
    pooling: Literal["first", "last", "mean"] = "last"
    pooler: Literal["none", "tanh", "relu", "transform"] = "none"
    transform_bias: bool = True
    normalize_embedding: bool = False
    embedding_context: int | None = Field(None, ge=1)

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
    def _possible_body(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
        if self.positions == "rotary" and (self.rotary_width < 2 or self.rotary_width % 2):
            raise ValueError(f"rotary positions need an even head width, not {self.rotary_width}")
        for name in ("local_layers", "dense_layers"):
            layers = getattr(self, name)
            if list(layers) != sorted(set(layers)) or not all(0 <= layer < self.layers for layer in layers):
                raise ValueError(f"{name} must name layers from 0 to {self.layers - 1}, each once and in order")
        if self.local_layers and self.window is None:
            raise ValueError("local layers need a window")
        if self.experts and not 0 < self.experts_per_token <= self.experts:
            raise ValueError(f"experts_per_token ({self.experts_per_token}) must be from 1 to experts ({self.experts})")
        if self.experts and not self.expert_width:
            raise ValueError("experts need an expert_width")
        scaling, half = self.rope_scaling, self.rotary_width // 2
        if scaling is not None and scaling.kind == "longrope":
            for name in ("short_factors", "long_factors"):
                if len(getattr(scaling, name)) != half:
                    raise ValueError(f"longrope needs {half} {name}, not {len(getattr(scaling, name))}")
        return self

    @model_validator(mode="after")
    def _possible_head(self) -> Self:
        if self.head == "classification" and len(self.labels) < 2:
            raise ValueError("a classification head needs at least two labels; one score is a reward head")
        if self.head == "token-classification" and not self.labels:
            raise ValueError("a token-classification head needs labels")
        if self.head not in LABELLED and self.labels:
            raise ValueError(f"a {self.head} head has no labels")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ from each other")
        if self.head == "causal-lm" and not self.causal:
            raise ValueError(f"family {self.family} sees both directions and has no causal-lm head")
        if self.head == "masked-lm" and self.causal:
            raise ValueError(f"family {self.family} is causal and has no masked-lm head")
        return self

    @property
    def rotary_width(self) -> int:
        """Features of each head that are rotated."""
        return int(self.head_width * self.rotary_share)

    def with_head(self, head: Head, labels: tuple[str, ...] = ()) -> ModelConfig:
        """The same body under another head; raises ValueError where the family cannot carry it."""
        return self.model_validate({**self.model_dump(), "head": head, "labels": labels})

    def parameter_count(self) -> int:
        """The number of parameters, head included, shared ones counted once."""
        return cost.parameter_count(self)

    def active_parameter_count(self) -> int:
        """Those of them that work for any one token: of routed experts only as many as a token goes through."""
        return cost.active_parameter_count(self)

    def flops_per_sequence(self, length: int, *, backward: bool = True, predicted: float = 1.0) -> int:
        """Matrix-multiplication FLOPs of one sequence of `length` tokens; see `llmkit.model.cost`."""
        return cost.flops_per_sequence(self, length, backward=backward, predicted=predicted)

    def flops_per_token(self, length: int, *, backward: bool = True, predicted: float = 1.0) -> float:
        """`flops_per_sequence` over its tokens: about 6 N + 12 layers x width x length when training."""
        return self.flops_per_sequence(length, backward=backward, predicted=predicted) / length

    def cache_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes that the key/value cache takes for each token of each sequence, in layers without a window."""
        global_layers = self.layers - len(self.local_layers)
        return 2 * global_layers * self.kv_heads * self.head_width * bytes_per_value
