"""Attention over short sequences on a CPU in bfloat16, by score matrices, forward and backward.

torch's flash kernel computes in float32 on a CPU; here all products are bfloat16 ones. Against scores written as plain
tensor operations, which autograd differentiates, rows of queries go block by block and see only the keys up to their
own block's end, so that a causal pass leaves out almost half of the work, and rotary positions are applied where the
heads are laid out for the products, without tensors of their own.

Both passes are operators of torch's library: a compiled block calls them as they are, whatever the length.

Shapes: B batch, L tokens, H heads, K key/value heads, D head width, F rotated pairs of features.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

ROWS = 128
"""Queries of one block, where attention is causal."""
LONGEST = 8
"""Sequences up to this many head widths gain: beyond, the score matrices' traffic outweighs the faster products."""


def fits(query_BLHD: Tensor, key_BLKD: Tensor) -> bool:
    """Whether these are what the operator is for; by kind and shape alone, so that passes with and without gradients
    give the same bits."""
    # Not of a subclass: a DTensor's blocks are cut across devices.
    if is_traceable_wrapper_subclass(cast(object, query_BLHD)):
        return False
    if query_BLHD.device.type != "cpu" or query_BLHD.dtype != torch.bfloat16:
        return False
    length = query_BLHD.shape[1]
    return key_BLKD.shape[1] == length and 1 < length <= LONGEST * query_BLHD.shape[3]


def short_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotation: tuple[Tensor, Tensor] | None,
    *,
    scale: float,
    causal: bool,
) -> Tensor:
    """Softmax attention of every token over all tokens, or over those up to its own.

    Args:
        query: bfloat16 [B, L, H, D].
        key, value: bfloat16 [B, L, K, D].
        rotation: cosines and sines, [L, 1, F] or [B, L, 1, F], that queries and keys are turned by first, or None.
        scale: multiplies the products of queries and keys.
        causal: each token sees itself and those before it.

    Returns:
        bfloat16 [B, L, H x D].
    """
    cosine, sine = rotation if rotation is not None else (None, None)
    mixed: Tensor = _forward(query, key, value, cosine, sine, scale, causal)[0]
    return mixed


def _heads_first(x_BLHD: Tensor, cosine: Tensor | None, sine: Tensor | None) -> Tensor:
    """A copy as contiguous [B, H, L, D], turned by the positions' angles."""
    return _turned(
        x_BLHD, cosine, sine, torch.empty_like(x_BLHD.transpose(1, 2), memory_format=torch.contiguous_format)
    )


def _turned(x_BLHD: Tensor, cosine: Tensor | None, sine: Tensor | None, into_BHLD: Tensor) -> Tensor:
    """Write [B, L, H, D], turned, into a tensor [B, H, L, D]; see `llmkit.model.rotary.rotate`."""
    result = into_BHLD.transpose(1, 2)
    if cosine is None or sine is None:
        result.copy_(x_BLHD)
        return into_BHLD
    half = cosine.shape[-1]
    if 2 * half < x_BLHD.shape[-1]:
        result[..., 2 * half :] = x_BLHD[..., 2 * half :]
    first, second = x_BLHD[..., :half], x_BLHD[..., half : 2 * half]
    torch.mul(first, cosine, out=result[..., :half])
    result[..., :half].addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=result[..., half : 2 * half])
    result[..., half : 2 * half].addcmul_(first, sine)
    return into_BHLD


def _tokens_first(x_BHLD: Tensor, cosine: Tensor | None, sine: Tensor | None) -> Tensor:
    """The derivative of `_heads_first`: a copy as contiguous [B, L, H, D], turned back."""
    result = torch.empty_like(x_BHLD.transpose(1, 2), memory_format=torch.contiguous_format)
    _turned(x_BHLD.transpose(1, 2), cosine, None if sine is None else -sine, result.transpose(1, 2))
    return result


def _blocks(length: int, causal: bool) -> list[tuple[int, int, int]]:
    """First query, end of queries, and end of the keys seen, of each block."""
    if not causal:
        return [(0, length, length)]
    ends = [min(begin + ROWS, length) for begin in range(0, length, ROWS)]
    return [(begin, end, end) for begin, end in zip(range(0, length, ROWS), ends, strict=True)]


def _area(length: int, causal: bool) -> int:
    """Scores that a head computes; in closed form, since a compiled block knows the length as a symbol alone."""
    whole, rest = length // ROWS, length % ROWS
    return ROWS * ROWS * whole * (whole + 1) // 2 + rest * length if causal else length * length


def _cut(shares: Tensor, batch: int, kv_heads: int, heads: int, length: int, causal: bool) -> list[Tensor]:
    """Each block's shares [B, K, G x rows, keys], as views of the one tensor that holds them all."""
    parts, place = [], 0
    for begin, end, seen in _blocks(length, causal):
        size = batch * heads * (end - begin) * seen
        parts.append(shares[place : place + size].view(batch, kv_heads, -1, seen))
        place += size
    return parts


def _rows(x_BHLD: Tensor, begin: int, end: int, kv_heads: int) -> Tensor:
    """Some rows of all heads, those that share a key head as rows of one matrix: [B, K, G x rows, D]."""
    part = x_BHLD[:, :, begin:end]
    # Where no heads share keys the part stays a view.
    return part if part.shape[1] == kv_heads else part.reshape(len(part), kv_heads, -1, part.shape[3])


@torch.library.custom_op("llmkit::short_attention", mutates_args=(), device_types="cpu")
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cosine: Tensor | None,
    sine: Tensor | None,
    scale: float,
    causal: bool,
) -> list[Tensor]:
    """What `short_attention` gives, and what its derivative needs: queries, keys and values as laid out for the
    products, and all blocks' shares."""
    batch, length, heads, width = query.shape
    kv_heads = key.shape[2]
    query = _heads_first(query, cosine, sine).mul_(scale)
    key, value = _heads_first(key, cosine, sine), _heads_first(value, None, None)
    mixed_BLHD = query.new_empty(batch, length, heads, width)
    kept = query.new_empty(batch * heads * _area(length, causal))
    parts = _cut(kept, batch, kv_heads, heads, length, causal)
    for (begin, end, seen), shares in zip(_blocks(length, causal), parts, strict=True):
        rows = end - begin
        scores = torch.matmul(_rows(query, begin, end, kv_heads), key[:, :, :seen].transpose(2, 3))
        if causal:
            # The lowest number, not minus infinity, as elsewhere.
            later = torch.full((rows, rows), torch.finfo(scores.dtype).min, dtype=scores.dtype).triu_(1)
            scores.view(batch, heads, rows, seen)[..., begin:] += later
        torch.softmax(scores, dim=-1, out=shares)
        mixed = torch.matmul(shares, value[:, :, :seen])
        mixed_BLHD[:, begin:end] = mixed.view(batch, heads, rows, width).transpose(1, 2)
    return [mixed_BLHD.view(batch, length, heads * width), query, key, value, kept]


@torch.library.custom_op("llmkit::short_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    upstream: Tensor,
    kept: list[Tensor],
    cosine: Tensor | None,
    sine: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives for queries [B, L, H, D], keys and values [B, L, K, D]."""
    query, key, value, shares = kept
    batch, heads, length, width = query.shape
    kv_heads = key.shape[1]
    parts = _cut(shares, batch, kv_heads, heads, length, causal)
    upstream = _heads_first(upstream.view(batch, length, heads, width), None, None)
    query_slope = torch.empty_like(query)
    key_slope, value_slope = torch.empty_like(key), torch.empty_like(value)
    # The last block sees all keys: it sets their slopes, and the others add to them.
    for (begin, end, seen), part in reversed(list(zip(_blocks(length, causal), parts, strict=True))):
        above = _rows(upstream, begin, end, kv_heads)
        slope = torch.matmul(above, value[:, :, :seen].transpose(2, 3))
        slope = torch.ops.aten._softmax_backward_data(slope, part, -1, part.dtype)
        rows_slope = torch.matmul(slope, key[:, :, :seen])
        query_slope[:, :, begin:end] = rows_slope.view(batch, heads, end - begin, width)
        of_keys = torch.matmul(slope.transpose(2, 3), _rows(query, begin, end, kv_heads))
        of_values = torch.matmul(part.transpose(2, 3), above)
        if end == length:
            key_slope, value_slope = of_keys, of_values
        else:
            key_slope[:, :, :seen] += of_keys
            value_slope[:, :, :seen] += of_values
    query_slope = _tokens_first(query_slope, cosine, sine).mul_(scale)
    return query_slope, _tokens_first(key_slope, cosine, sine), _tokens_first(value_slope, None, None)


@_forward.register_fake
def _forward_shapes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cosine: Tensor | None,
    sine: Tensor | None,
    scale: float,
    causal: bool,
) -> list[Tensor]:
    batch, length, heads, width = query.shape
    kv_heads = key.shape[2]
    kept = [query.new_empty(batch, length, heads * width), query.new_empty(batch, heads, length, width)]
    kept += [query.new_empty(batch, kv_heads, length, width) for _ in range(2)]
    return [*kept, query.new_empty(batch * heads * _area(length, causal))]


@_backward.register_fake
def _backward_shapes(
    upstream: Tensor,
    kept: list[Tensor],
    cosine: Tensor | None,
    sine: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (part.transpose(1, 2) for part in kept[:3])
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *_, cosine, sine, scale, causal = inputs
    ctx.save_for_backward(cosine, sine, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.settings = scale, causal


def _differentiate(ctx: Any, slopes: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    upstream = slopes[0]
    if upstream is None:
        return (None,) * 7
    cosine, sine, *kept = ctx.saved_tensors
    return *_backward(upstream.contiguous(), kept, cosine, sine, *ctx.settings), None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
