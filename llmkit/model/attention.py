"""Multi-head attention with shared key/value heads (Ainslie et al. 2023), rotary positions and an optional cache.

Shapes: B batch, L new tokens, S tokens attended to, W width, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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
        self.grouped = config.kv_heads != config.heads
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
        mixed_BHLD = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=visibility.mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=visibility.causal,
            enable_gqa=self.grouped,
        )
        mixed: Tensor = self.output(mixed_BHLD.transpose(1, 2).flatten(2))
        return mixed
