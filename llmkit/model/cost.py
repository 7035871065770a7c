"""What a model costs, in closed form: parameters and matrix-multiplication FLOPs. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmkit.model.config import ModelConfig


def parameter_count(config: ModelConfig) -> int:
    """The number of parameters, head included, shared ones counted once."""
    embeddings = (config.vocab_size + config.token_types) * config.width
    if config.positions == "learned":
        embeddings += (config.context + config.position_offset) * config.width
    if config.embedding_norm:
        embeddings += _norm(config)
    final_norm = 0 if config.norm_position == "post" else _norm(config)
    skipped = _norm(config) if config.skip_first_norm else 0
    dense = len(config.dense_layers) if config.experts else config.layers
    layers = config.layers * _attention(config) + dense * _mlp(config) + (config.layers - dense) * _experts(config)
    return embeddings + layers - skipped + final_norm + _head(config)


def active_parameter_count(config: ModelConfig) -> int:
    """Those of them that work for any one token: of routed experts only as many as a token goes through."""
    if not config.experts:
        return parameter_count(config)
    idle = (config.experts - config.experts_per_token) * _expert(config)
    return parameter_count(config) - (config.layers - len(config.dense_layers)) * idle


def _linear(inputs: int, outputs: int, bias: bool) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _norm(config: ModelConfig) -> int:
    return config.width * (2 if config.norm == "layer" and config.norm_bias else 1)


def _attention(config: ModelConfig) -> int:
    """Attention of a layer, and all of the layer's norms."""
    queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
    count = _linear(config.width, queries + 2 * keys, config.qkv_bias)
    count += _linear(queries, config.width, config.output_bias)
    count += {"none": 0, "head": 2 * config.head_width, "projection": queries + keys}[config.qk_norm]
    count += config.heads if config.attention_sinks else 0
    return count + _norm(config) * (4 if config.norm_position == "sandwich" else 2)


def _mlp(config: ModelConfig) -> int:
    count = _linear(config.width, config.mlp_width, config.mlp_bias) * (2 if config.gated_mlp else 1)
    return count + _linear(config.mlp_width, config.width, config.mlp_bias)


def _expert(config: ModelConfig) -> int:
    inner = 2 * _linear(config.width, config.expert_width, config.expert_bias)
    return inner + _linear(config.expert_width, config.width, config.expert_bias)


def _experts(config: ModelConfig) -> int:
    return config.experts * _expert(config) + _linear(config.width, config.experts, config.expert_bias)


def _head(config: ModelConfig) -> int:
    transform = _linear(config.width, config.width, config.transform_bias) + _norm(config)
    projection = 0 if config.tie_embeddings else config.vocab_size * config.width
    if config.head == "causal-lm":
        return projection
    if config.head == "masked-lm":
        return transform + projection + config.vocab_size
    if config.head == "embedding":
        return 0
    if config.head in ("token-classification", "question-answering"):
        outputs = len(config.labels) or 2
        return _linear(config.width, outputs, True) + (transform if config.pooler == "transform" else 0)
    pooler = {"none": 0, "transform": transform}.get(config.pooler, _linear(config.width, config.width, True))
    return pooler + _linear(config.width, len(config.labels) or 1, not config.causal)


def _head_flops(config: ModelConfig, length: int, predicted: float) -> int:
    """Forward FLOPs of the head on one sequence; sequence heads work on one of its tokens only."""
    transform = config.width * config.width
    if config.head in ("causal-lm", "masked-lm"):
        weights = (transform if config.head == "masked-lm" else 0) + config.width * config.vocab_size
        return round(2 * length * predicted * weights)
    if config.head == "embedding":
        return 0
    outputs = len(config.labels) or (2 if config.head == "question-answering" else 1)
    if config.head in ("token-classification", "question-answering"):
        return 2 * length * ((transform if config.pooler == "transform" else 0) + config.width * outputs)
    return 2 * ((0 if config.pooler == "none" else transform) + config.width * outputs)


def flops_per_sequence(config: ModelConfig, length: int, *, backward: bool = True, predicted: float = 1.0) -> int:
    """Matrix-multiplication FLOPs of one sequence of `length` tokens, a share of which (`predicted`) gets logits.

    A multiply-add is two FLOPs; the backward pass costs twice the forward one. Attention is counted over all pairs of
    tokens, causal or not, as in PaLM (Chowdhery et al. 2022, appendix B), in local layers over the window alone; of
    routed experts those that a token goes to.
    """
    queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
    projections = config.width * (2 * queries + 2 * keys)
    dense = len(config.dense_layers) if config.experts else config.layers
    mlp = dense * config.width * config.mlp_width * (3 if config.gated_mlp else 2)
    routed = config.width * (3 * config.expert_width * config.experts_per_token + config.experts)
    mlp += (config.layers - dense) * routed
    reach = length if config.window is None else min(length, config.window * (1 if config.causal else 2))
    local = len(config.local_layers)
    scores = 2 * queries * ((config.layers - local) * length + local * reach)
    forward = 2 * length * (config.layers * projections + mlp + scores) + _head_flops(config, length, predicted)
    return 3 * forward if backward else forward


def block_linears(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear maps that every block has, by name within the block; experts have none."""
    queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
    found = {
        "attention.query": (config.width, queries),
        "attention.key": (config.width, keys),
        "attention.value": (config.width, keys),
        "attention.output": (queries, config.width),
    }
    if not config.experts:
        found |= {"mlp.gate": (config.width, config.mlp_width)} if config.gated_mlp else {}
        found |= {"mlp.up": (config.width, config.mlp_width), "mlp.down": (config.mlp_width, config.width)}
    return found
