"""The key/value cache: what attention has computed for the tokens already seen, preallocated for many sequences.

Layers that see everything keep all of a sequence's tokens, in order. Layers with a window keep a ring: the place of
position p is p modulo the ring's length, so that memory and work end at the window however long the sequence is.

Shapes: B rows at work, N prompts, L new tokens, S places, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmkit.model.config import ModelConfig

# Spans grow by so many places at once. Masked places add exact zeros to whole vectors of the kernels' sums, so that a
# row's result does not depend on how long the other rows are.
_STEP = 32


# Sums of keys' values in fp32 on a CPU without AVX512: MKL adds up blocks of so many places, but where there are more
# than one and less than two of them it halves what there is, so that the rounding would depend on the span.
BLOCK = 192 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 1

# Bytes up to which a CPU's cache is kept as wide as its products, which saves a cast of all of it at each token.
_WIDE_BYTES = 2**30


def rounded(places: int, step: int = _STEP) -> int:
    """The next span that is as long as `places` or longer, and that gives the same bits as any longer one."""
    span = -(-places // step) * step
    return 2 * BLOCK if BLOCK < span < 2 * BLOCK else span


class KVCache:
    """Keys and values of `slots` sequences of up to `capacity` tokens each.

    Args:
        spare: places beyond that, so that a step never reads all of them: compiled code is other code then.

    Attributes:
        dtype: what keys and values are rounded to; they may be kept in a wider one.
        layers: for each layer keys and values, [2, slots, K, S, D].
        places: S of the layers that see everything.
        ring: S of the local layers.
    """

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        spare: int = 0,
    ) -> None:
        self.config, self.slots, self.dtype, self.device = config, slots, dtype, device
        self.places = rounded(capacity) + spare
        self.ring = min(self.places, rounded(config.window)) if config.window is not None else self.places
        self.local = frozenset(config.local_layers)
        local = len(self.local) * self.ring + (config.layers - len(self.local)) * self.places
        wide = 8 * slots * config.kv_heads * config.head_width * local <= _WIDE_BYTES
        kept = torch.float32 if device.type == "cpu" and wide else dtype
        # Zeros, since places not yet written are read and weighted with zero: 0 x NaN would be NaN.
        self.layers = [
            torch.zeros(
                (2, slots, config.kv_heads, self.ring if layer in self.local else self.places, config.head_width),
                dtype=kept,
                device=device,
            )
            for layer in range(config.layers)
        ]

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy the sequences in slots `source` [n] to slots `target` [n]."""
        for tensor in self.layers:
            tensor[:, target] = tensor[:, source]


class Prefill:
    """Forward passes over the prompts of joining sequences, chunk by chunk, that fill their slots.

    Args:
        cache: where to write.
        slots: int64 [n], the slots to fill.
        source: int64 [n], for each of them the prompt that it continues.
        lengths: int64 [N], the prompts' lengths, the longest first.
    """

    def __init__(self, cache: KVCache, slots: Tensor, source: Tensor, lengths: Tensor) -> None:
        self.cache, self.slots, self.source, self.lengths = cache, slots, source, lengths
        # Any slot of each prompt will do to read its keys again.
        self.first = torch.empty_like(lengths).scatter_(0, source.flip(0), slots.flip(0))
        self.start = self.active = 0
        self.tails: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, start: int, active: int) -> None:
        """Name the chunk that comes: where it begins, and how many of the prompts reach into it."""
        self.start, self.active = start, active

    def extend(self, layer: int, key_NKLD: Tensor, value_NKLD: Tensor) -> tuple[Tensor, Tensor, int]:
        """Store a chunk's keys and values of a layer.

        Returns:
            Those to attend to, [N, K, S, D], the chunk's own last; and the position of the first of them.
        """
        if layer in self.cache.local:
            return self._extend_ring(layer, key_NKLD, value_NKLD)
        stored, end = self.cache.layers[layer], self.start + key_NKLD.shape[2]
        joins = self.source < self.active
        slots, source = self.slots[joins], self.source[joins]
        for kept, new in zip(stored, (key_NKLD, value_NKLD), strict=True):
            kept[slots, :, self.start : end] = new[source].to(kept.dtype)
        if self.start == 0:
            return key_NKLD, value_NKLD, 0
        before = stored[:, self.first[: self.active], :, : self.start].to(key_NKLD.dtype)
        return torch.cat((before[0], key_NKLD), dim=2), torch.cat((before[1], value_NKLD), dim=2), 0

    def _extend_ring(self, layer: int, key_NKLD: Tensor, value_NKLD: Tensor) -> tuple[Tensor, Tensor, int]:
        window, end = self.cache.config.window, self.start + key_NKLD.shape[2]
        assert window is not None
        stored = self.cache.layers[layer]
        joins = self.source < self.active
        slots, source = self.slots[joins], self.source[joins]
        # Of each place the last position that belongs to it, padding left out.
        ends = self.lengths[source].clamp(max=end)[:, None]
        places = torch.arange(self.cache.ring, device=ends.device)
        position = ends - 1 - (ends - 1 - places) % self.cache.ring
        fresh = (position >= self.start)[:, None, :, None]
        index = (position - self.start).clamp(min=0)[:, None, :, None]
        index = index.expand(-1, key_NKLD.shape[1], -1, key_NKLD.shape[3])
        for kept, new in zip(stored, (key_NKLD, value_NKLD), strict=True):
            kept[slots] = torch.where(fresh, new[source].gather(2, index).to(kept.dtype), kept[slots])
        keys, values = key_NKLD, value_NKLD
        if layer in self.tails:
            tail_keys, tail_values = self.tails[layer]
            keys = torch.cat((tail_keys[: self.active], keys), dim=2)
            values = torch.cat((tail_values[: self.active], values), dim=2)
        older = max(0, keys.shape[2] - (window - 1))
        self.tails[layer] = keys[:, :, older:], values[:, :, older:]
        return keys, values, end - keys.shape[2]


@dataclass(frozen=True)
class _Reach:
    """Where one step writes and reads in layers of a kind.

    Attributes:
        index: int64 [B x 2 x K], the rows of the layer's [.., D] table to write.
        mask: [B x K, 1, span], 0 at places that are seen and minus infinity elsewhere.
    """

    index: Tensor
    mask: Tensor


@dataclass(frozen=True)
class LayerDecode:
    """One layer's part of a step.

    Attributes:
        stored: the layer's keys and values, [2, slots, K, S, D].
        index, mask: as of `_Reach`.
        kept: what new keys and values are rounded to.
        dtype: in which attention is computed.
    """

    stored: Tensor
    index: Tensor
    mask: Tensor
    kept: torch.dtype
    dtype: torch.dtype

    def extend(self, entries_B2KD: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values, [B, 2 K, D], keys first.

        Returns:
            Keys and values to attend to, [B x K, span, D] in `dtype`.
        """
        stored, width = self.stored, self.stored.shape[-1]
        entries = entries_B2KD.to(self.kept).reshape(-1, width).to(stored.dtype)
        stored.view(-1, width).index_copy_(0, self.index, entries)
        rows, _, span = self.mask.shape
        seen = stored.view(2, -1, *stored.shape[3:])[:, :rows, :span].to(self.dtype)
        return seen[0], seen[1]

    def mark_lengths(self) -> None:
        """Have a compiler take the places, and how many are read, as numbers that change."""
        torch._dynamo.maybe_mark_dynamic(self.stored, 3)
        torch._dynamo.maybe_mark_dynamic(self.mask, 2)


class Decode:
    """A forward pass over one new token of each of the cache's first B slots.

    Args:
        cache: where to read and write.
        positions: int64 [B], each row's position: the number of its tokens already in the cache.
        longest: the largest of them.

    Attributes:
        dtype: in which attention is computed.
    """

    def __init__(self, cache: KVCache, positions: Tensor, longest: int) -> None:
        self.cache, self.positions = cache, positions
        # On a CPU small products in fp32 are the fastest at every span, and the cast costs less than it saves: what is
        # read from memory stays half as wide.
        self.dtype = torch.float32 if positions.device.type == "cpu" else cache.dtype
        self.everything = self._reach(cache.places, min(rounded(longest + 1), cache.places), None)
        self.local = self.everything
        if cache.local:
            window = cache.config.window
            self.local = self._reach(cache.ring, min(rounded(longest + 1), cache.ring), window)

    def _reach(self, places: int, span: int, window: int | None) -> _Reach:
        kv_heads, slots, device = self.cache.config.kv_heads, self.cache.slots, self.positions.device
        at = self.positions[:, None]
        columns = torch.arange(span, device=device)
        # The position that each place holds once the new token is in; below zero where none was written.
        held = at - (at - columns) % places
        seen = held >= 0 if window is None else (held >= 0) & (held > at - window)
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=device).masked_fill_(~seen, -torch.inf)
        mask = mask[:, None, None, :].expand(-1, kv_heads, -1, -1).reshape(-1, 1, span)
        heads = torch.arange(2 * kv_heads, device=device)
        tables = (heads // kv_heads) * slots * kv_heads + heads % kv_heads
        rows = torch.arange(len(at), device=device)[:, None] * kv_heads + tables
        return _Reach((rows * places + at % places).flatten(), mask)

    def layer(self, layer: int) -> LayerDecode:
        """The part of a layer."""
        reach = self.local if layer in self.cache.local else self.everything
        return LayerDecode(self.cache.layers[layer], reach.index, reach.mask, self.cache.dtype, self.dtype)
