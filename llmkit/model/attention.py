"""Multi-head attention with shared key/value heads (Ainslie et al. 2023), rotary positions.

Shapes: B batch, L new tokens, S tokens attended to, W width, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.model.config import ModelConfig
from llmkit.model.documents import Documents
from llmkit.model.layers import Linear, make_norm
from llmkit.model.rotary import rotate
from llmkit.model.short_attention import fits, short_attention


@dataclass(frozen=True)
class Visibility:
    """Who attends to whom in one forward pass, the same for all layers of a kind.

    Attributes:
        causal: each token sees itself and those before it.
        mask: bool, broadcastable to [B, H, L, S], True where a token is seen; None when `causal` says it all.
        window: how many tokens back each sees, its own included; where not causal, how many to either side, its own
            not included. None: all.
        rotation: cosines and sines of the new tokens' positions, or None.
        documents: the documents in the rows, where each is to see itself alone; there is no mask then.
    """

    causal: bool
    mask: Tensor | None = None
    window: int | None = None
    rotation: tuple[Tensor, Tensor] | None = None
    documents: Documents | None = None


@dataclass(frozen=True)
class Scoring:
    """How scores become shares.

    Attributes:
        scale: multiplies the products of queries and keys.
        softcap: cap * tanh(score / cap), or None (Gemma 2).
        sinks: [H], the score of attending to nothing, or None (gpt-oss).
        dropout: share of the shares dropped.
    """

    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0


class Attention(nn.Module):
    """Attention of one layer. Query, key and value are separate projections: fused ones measured no faster."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_width = config.head_width
        self.dropout = config.attention_dropout
        self.scale = (config.score_width or config.head_width) ** -0.5
        self.softcap = config.score_softcap
        queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
        self.query = Linear(config.width, queries, config.qkv_bias)
        self.key = Linear(config.width, keys, config.qkv_bias)
        self.value = Linear(config.width, keys, config.qkv_bias)
        self.output = Linear(queries, config.width, config.output_bias)
        whole = config.qk_norm == "projection"
        self.norms_heads = config.qk_norm == "head"
        self.query_norm = (
            make_norm(config, queries if whole else config.head_width) if config.qk_norm != "none" else None
        )
        self.key_norm = make_norm(config, keys if whole else config.head_width) if config.qk_norm != "none" else None
        self.sinks = nn.Parameter(torch.empty(config.heads)) if config.attention_sinks else None
        # An attribute, for `compile_blocks` to replace.
        self.attend_apart = attend_apart

    def forward(self, x_BLW: Tensor, visibility: Visibility) -> Tensor:
        """[B, L, W] to [B, L, W]."""
        query, key, value = self.project(x_BLW)
        scoring = self.scoring()
        if visibility.documents is not None:
            apart = self.attend_apart(query, key, value, visibility, scoring, visibility.documents)
            return self.output(apart)  # type: ignore[no-any-return]
        if _is_short(query, key, visibility, scoring):
            short = short_attention(
                query, key, value, visibility.rotation, scale=scoring.scale, causal=visibility.causal
            )
            return self.output(short)  # type: ignore[no-any-return]
        if visibility.rotation is not None:
            query, key = rotate(query, *visibility.rotation), rotate(key, *visibility.rotation)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        mixed_BHLD = attend(query, key, value, visibility, scoring)
        mixed: Tensor = self.output(mixed_BHLD.transpose(1, 2).flatten(2))
        return mixed

    def project(self, x_BLW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, L, H, D], keys and values [B, L, K, D], normalised where the config says so, not yet rotated."""
        heads = (*x_BLW.shape[:2], -1, self.head_width)
        query, key, value = self.query(x_BLW), self.key(x_BLW), self.value(x_BLW).view(heads)
        if self.query_norm is None or self.key_norm is None:
            return query.view(heads), key.view(heads), value
        if self.norms_heads:
            query, key = query.view(heads), key.view(heads)
        # Under autocast norms give fp32; what they give is to enter matrix products in the projections' precision.
        query, key = self.query_norm(query).to(value.dtype), self.key_norm(key).to(value.dtype)
        return query.view(heads), key.view(heads), value

    def scoring(self) -> Scoring:
        """How this layer's scores become shares, in the module's mode."""
        return Scoring(self.scale, self.softcap, self.sinks, self.dropout if self.training else 0.0)


def _is_short(query: Tensor, key: Tensor, visibility: Visibility, scoring: Scoring) -> bool:
    """Whether `short_attention` computes all of it."""
    if (
        visibility.mask is not None
        or visibility.documents is not None
        or scoring.softcap is not None
        or scoring.sinks is not None
        or scoring.dropout
    ):
        return False
    return (visibility.window is None or query.shape[1] <= visibility.window) and fits(query, key)


def attend(query: Tensor, key: Tensor, value: Tensor, visibility: Visibility, scoring: Scoring) -> Tensor:
    """Scaled dot-product attention: [B, H, L, D] over [B, K, S, D] gives [B, H, L, D]."""
    window, length = visibility.window, query.shape[2]
    if window is not None and length > window:
        return _attend_in_windows(query, key, value, visibility, scoring, window)
    return attend_masked(query, key, value, visibility.mask, visibility.causal, scoring)


def attend_masked(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scoring: Scoring
) -> Tensor:
    """Attention to what a mask [B or 1, H or 1, L, S] says, or a causal one of as many keys as queries; else to all."""
    if scoring.softcap is not None or scoring.sinks is not None or _prefers_explicit_scores(query, key):
        return _attend_explicitly(query, key, value, mask, causal, scoring)
    heads, kv_heads = query.shape[1], key.shape[1]
    # Query heads that share a key head and see the same serve as its rows: the keys are read once, not G times.
    folds = heads != kv_heads and query.shape[2] == 1 and not causal
    mixed = F.scaled_dot_product_attention(
        query.view(len(query), kv_heads, -1, query.shape[3]) if folds else query,
        key,
        value,
        attn_mask=mask,
        dropout_p=scoring.dropout,
        is_causal=causal,
        scale=scoring.scale,
        enable_gqa=heads != kv_heads and not folds,
    )
    return mixed.view(query.shape) if folds else mixed


def attend_apart(
    query: Tensor, key: Tensor, value: Tensor, visibility: Visibility, scoring: Scoring, documents: Documents
) -> Tensor:
    """Each document by itself, its positions from 0 on: [B, L, H, D] over [B, L, K, D], not yet rotated, gives
    [B, L, H x D]."""
    variable = _variable_length(query, scoring)
    if variable is not None:
        return _attend_by_ends(variable, query, key, value, visibility, scoring, documents)
    gathered = [documents.gather(part.flatten(0, 1)) for part in (query, key, value)]
    mixed = []
    for group in documents.groups:
        queries, keys, values = (group.of(part) for part in gathered)
        rotation = visibility.rotation
        if rotation is not None:
            rotation = rotation[0][..., : group.length, :, :], rotation[1][..., : group.length, :, :]
        # Under a causal mask no token sees the padding on its right.
        alone = replace(visibility, documents=None, mask=None if visibility.causal else group.real)
        if _is_short(queries, keys, alone, scoring):
            found = short_attention(queries, keys, values, rotation, scale=scoring.scale, causal=visibility.causal)
        else:
            if rotation is not None:
                queries, keys = rotate(queries, *rotation), rotate(keys, *rotation)
            queries, keys, values = queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
            found = attend(queries, keys, values, alone, scoring).transpose(1, 2).flatten(2)
        mixed.append(found.flatten(0, 1))
    return documents.scatter(torch.cat(mixed)).view(*query.shape[:2], -1)


def _attend_by_ends(
    kernel: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visibility: Visibility,
    scoring: Scoring,
    documents: Documents,
) -> Tensor:
    """`attend_apart` by a kernel that is told where documents end."""
    if visibility.rotation is not None:
        # Only differences of positions count: they need not begin anew.
        query, key = rotate(query, *visibility.rotation), rotate(key, *visibility.rotation)
    window, ends, longest = visibility.window, documents.ends, documents.longest
    sides = (-1, 0 if visibility.causal else -1) if window is None else (window, window)
    if visibility.causal and window is not None:
        sides = (window - 1, 0)
    mixed = kernel(
        *(part.flatten(0, 1) for part in (query, key, value)),
        ends,
        ends,
        longest,
        longest,
        scale=scoring.scale,
        window_size=sides,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return mixed.view(*query.shape[:2], -1)


def _variable_length(query: Tensor, scoring: Scoring) -> Callable[..., Tensor] | None:
    """The kernel for sequences of different lengths behind one another, where it is there and computes this."""
    plain = scoring.softcap is None and scoring.sinks is None and not scoring.dropout
    half = query.dtype in (torch.bfloat16, torch.float16)
    if query.device.type != "cuda" or not plain or not half or query.shape[3] > 256:
        return None
    return _variable_length_kernel()


@cache
def _variable_length_kernel() -> Callable[..., Tensor] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    # torch 2.10's knows neither windows nor a scale nor shared heads.
    known = signature(varlen_attn).parameters
    return cast(Callable[..., Tensor], varlen_attn) if {"window_size", "scale", "enable_gqa"} <= known.keys() else None


def _attend_in_windows(
    query: Tensor, key: Tensor, value: Tensor, visibility: Visibility, scoring: Scoring, window: int
) -> Tensor:
    """Chunks of queries, each over the keys that any of them sees: cost and memory grow with L x window, not L^2."""
    length, chunk = query.shape[2], max(window, 64)
    places = torch.arange(length, device=query.device)
    mixed = []
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        first, last = (max(0, start - window + 1), end) if visibility.causal else (max(0, start - window), end + window)
        rows, columns = places[start:end, None], places[None, first:last]
        # The queries' distance from the keys, positive for keys that come before.
        distance = rows - columns
        mask = (distance >= 0) & (distance < window) if visibility.causal else distance.abs() <= window
        if visibility.mask is not None:
            mask = mask & visibility.mask[..., first:last]
        keys, values = key[:, :, first:last], value[:, :, first:last]
        mixed.append(attend_masked(query[:, :, start:end], keys, values, mask, False, scoring))
    return torch.cat(mixed, dim=2)


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


# Bounds the memory of explicit scores: rows of queries computed at once, over all heads.
_ROWS = 1024


def _attend_explicitly(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scoring: Scoring
) -> Tensor:
    length, span = query.shape[2], key.shape[2]
    if length <= _ROWS:
        return attend_rows(query, key, value, mask, causal, scoring)
    mixed = []
    for start in range(0, length, _ROWS):
        end = min(start + _ROWS, length)
        seen = end if causal else span
        part = mask[..., start:end, :seen] if mask is not None and mask.shape[-2] > 1 else mask
        if causal:
            part = torch.ones(end - start, seen, dtype=torch.bool, device=query.device).tril(start)
        mixed.append(attend_rows(query[:, :, start:end], key[:, :, :seen], value[:, :, :seen], part, False, scoring))
    return torch.cat(mixed, dim=2)


def attend_rows(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scoring: Scoring
) -> Tensor:
    """Attention by whole score matrices, shapes as for `attend`."""
    batch, heads, length, width = query.shape
    kv_heads, span = key.shape[1:3]
    # The G query heads that share a key head become G times as many rows of one product: [B, K, G x L, D].
    rows = (query * scoring.scale).reshape(batch, kv_heads, -1, width)
    scores = torch.matmul(rows, key.transpose(2, 3)).view(batch, heads, length, span)
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    # The lowest number, not minus infinity: a row that sees nothing stays finite.
    lowest = torch.finfo(scores.dtype).min
    if causal:
        scores = scores + torch.full((length, span), lowest, dtype=scores.dtype, device=scores.device).triu(1)
    elif mask is not None:
        scores = scores.masked_fill(~mask, lowest)
    if scoring.sinks is not None:
        sinks = scoring.sinks.to(scores.dtype)[:, None, None].expand(batch, heads, length, 1)
        scores = torch.cat((scores, sinks), dim=-1)
    shares = torch.softmax(scores, dim=-1)[..., :span]
    if scoring.dropout:
        shares = F.dropout(shares, scoring.dropout)
    return torch.matmul(shares.reshape(batch, kv_heads, -1, span), value).view(query.shape)
