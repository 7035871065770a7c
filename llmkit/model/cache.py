"""The key/value cache: what attention has computed for the tokens already seen, preallocated for many sequences.

Shapes: B rows at work, L new tokens, S tokens attended to, K key/value heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmkit.model.config import ModelConfig


class KVCache:
    """Keys and values of `slots` sequences of up to `capacity` tokens each."""

    def __init__(
        self, config: ModelConfig, slots: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (slots, config.kv_heads, capacity, config.head_width)
        # Zeros, since places not yet written are read and weighted with zero: 0 x NaN would be NaN.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.slots = slots
        self.capacity = capacity

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy the sequences in slots `source` [n] to slots `target` [n]."""
        for tensor in (*self.keys, *self.values):
            tensor[target] = tensor[source]


class Prefill:
    """A forward pass over whole prompts, right-padded, whose keys and values go to the cache's slots.

    Args:
        cache: where to write.
        slots: int64 [n], the slots to fill.
        source: int64 [n], for each of them the row of the batch that it continues.
        lengths: int64 [B], the length of each row's prompt.
    """

    causal = True

    def __init__(self, cache: KVCache, slots: Tensor, source: Tensor, lengths: Tensor) -> None:
        self.mask: Tensor | None = None
        self.local_mask: Tensor | None = None
        self.lengths: Tensor | None = lengths
        self.cache, self.slots, self.source = cache, slots, source

    def extend(self, layer: int, key_BKLD: Tensor, value_BKLD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values; returns those to attend to: the prompts' own."""
        length = key_BKLD.shape[2]
        cache = self.cache
        cache.keys[layer][self.slots, :, :length] = key_BKLD[self.source].to(cache.keys[layer].dtype)
        cache.values[layer][self.slots, :, :length] = value_BKLD[self.source].to(cache.values[layer].dtype)
        return key_BKLD, value_BKLD


class Decode:
    """A forward pass over one new token of each of the cache's first B slots.

    Args:
        cache: where to read and write.
        positions: int64 [B, 1], each row's position: the number of its tokens already in the cache.
        span: one more than the largest of them.
        window: how many tokens local layers see, or None.
    """

    causal = False

    def __init__(self, cache: KVCache, positions: Tensor, span: int, window: int | None = None) -> None:
        self.cache, self.span = cache, span
        self.rows = torch.arange(positions.shape[0], device=positions.device)
        self.positions = positions
        self.at = positions[:, 0]
        # One row alone fills its span exactly and needs no mask.
        self.mask: Tensor | None = None
        places = torch.arange(span, device=positions.device)
        if positions.shape[0] > 1:
            self.mask = (places <= positions)[:, None, None, :]
        self.local_mask = self.mask
        if window is not None and span > window:
            self.local_mask = ((places <= positions) & (places > positions - window))[:, None, None, :]
        self.lengths: Tensor | None = self.at + 1

    def extend(self, layer: int, key_BKLD: Tensor, value_BKLD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values; returns all those of the rows' sequences, [B, K, span, D]."""
        keys, values, batch = self.cache.keys[layer], self.cache.values[layer], len(self.rows)
        keys[self.rows, :, self.at] = key_BKLD[:, :, 0].to(keys.dtype)
        values[self.rows, :, self.at] = value_BKLD[:, :, 0].to(values.dtype)
        return keys[:batch, :, : self.span], values[:batch, :, : self.span]
