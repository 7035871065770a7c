"""Multi-head attention with shared key/value heads (Ainslie et al. 2023), rotary positions and an optional cache.

Shapes: B batch, L new tokens, S tokens attended to, W width, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.model.config import ModelConfig
from llmkit.model.layers import Linear
from llmkit.model.rotary import rotate


class CachePass(Protocol):
    """One forward pass's access to the key/value cache; see `llmkit.model.cache`."""

    mask: Tensor | None
    causal: bool

    def extend(self, layer: int, key_BKLD: Tensor, value_BKLD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; returns those to attend to."""
        ...


@dataclass(frozen=True)
class Visibility:
    """Who attends to whom in one forward pass, the same for all layers.

    Attributes:
        causal: each token sees itself and those before it.
        mask: bool, broadcastable to [B, H, L, S], True where a token is seen; None when `causal` says it all.
        rotation: cosines and sines of the new tokens' positions, or None.
        cache: keys and values of earlier tokens, or None.
    """

    causal: bool
    mask: Tensor | None = None
    rotation: tuple[Tensor, Tensor] | None = None
    cache: CachePass | None = None


class Attention(nn.Module):
    """Attention of one layer. Query, key and value are separate projections: fused ones measured no faster."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_width = config.head_width
        self.dropout = config.attention_dropout
        queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
        self.query = Linear(config.width, queries, config.qkv_bias)
        self.key = Linear(config.width, keys, config.qkv_bias)
        self.value = Linear(config.width, keys, config.qkv_bias)
        self.output = Linear(queries, config.width, config.output_bias)

    def forward(self, x_BLW: Tensor, visibility: Visibility) -> Tensor:
        """[B, L, W] to [B, L, W]."""
        heads = (*x_BLW.shape[:2], -1, self.head_width)
        query, key, value = self.query(x_BLW).view(heads), self.key(x_BLW).view(heads), self.value(x_BLW).view(heads)
        if visibility.rotation is not None:
            query, key = rotate(query, *visibility.rotation), rotate(key, *visibility.rotation)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if visibility.cache is not None:
            key, value = visibility.cache.extend(self.layer, key, value)
        mixed_BHLD = attend(query, key, value, visibility, self.dropout if self.training else 0.0)
        mixed: Tensor = self.output(mixed_BHLD.transpose(1, 2).flatten(2))
        return mixed


def attend(query: Tensor, key: Tensor, value: Tensor, visibility: Visibility, dropout: float) -> Tensor:
    """Scaled dot-product attention: [B, H, L, D] over [B, K, S, D] gives [B, H, L, D]."""
    if _prefers_explicit_scores(query, key):
        return _attend_explicitly(query, key, value, visibility, dropout)
    heads, kv_heads = query.shape[1], key.shape[1]
    # Query heads that share a key head and see the same serve as its rows: the keys are read once, not G times.
    folds = heads != kv_heads and query.shape[2] == 1 and not visibility.causal
    mixed = F.scaled_dot_product_attention(
        query.view(len(query), kv_heads, -1, query.shape[3]) if folds else query,
        key,
        value,
        attn_mask=visibility.mask,
        dropout_p=dropout,
        is_causal=visibility.causal,
        enable_gqa=heads != kv_heads and not folds,
    )
    return mixed.view(query.shape) if folds else mixed


def _prefers_explicit_scores(query: Tensor, key: Tensor) -> bool:
    """Whether whole score matrices beat the flash kernel.

    On a CPU in bf16 they do for short sequences, forward and backward together by 2 to 4 times: the flash kernel
    computes there in fp32, the matrix products in bf16. They do too for one new token in each of many sequences. By
    shape alone, so that a pass with gradients and one without agree to the bit.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return False
    batch, heads, length, head_width = query.shape
    if length == 1:
        return batch > 1 and heads == key.shape[1]
    return key.shape[2] == length and length <= 8 * head_width


def _attend_explicitly(query: Tensor, key: Tensor, value: Tensor, visibility: Visibility, dropout: float) -> Tensor:
    batch, heads, length, width = query.shape
    kv_heads, span = key.shape[1:3]
    # The G query heads that share a key head become G times as many rows of one product: [B, K, G x L, D].
    rows = (query * width**-0.5).reshape(batch, kv_heads, -1, width)
    scores = torch.matmul(rows, key.transpose(2, 3)).view(batch, heads, length, span)
    # The lowest number, not minus infinity: a row that sees nothing stays finite.
    lowest = torch.finfo(scores.dtype).min
    if visibility.causal:
        scores = scores + torch.full((length, span), lowest, dtype=scores.dtype, device=scores.device).triu(1)
    elif visibility.mask is not None:
        scores = scores.masked_fill(~visibility.mask, lowest)
    shares = torch.softmax(scores, dim=-1)
    if dropout:
        shares = F.dropout(shares, dropout)
    return torch.matmul(shares.view(batch, kv_heads, -1, span), value).view(query.shape)
