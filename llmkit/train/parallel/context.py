"""Context parallelism: ranks that share the tokens of each sequence, for sequences too long for one.

Each rank has a part of every sequence: queries of its own tokens, which attend to the keys and values of all, gathered
in each layer (as in Grattafiori et al. 2024, section 3.3.2) and let go of after it. Under a causal mask late tokens
have more to attend to than early ones: a rank gets one piece from the beginning and its mirror image from the end.

Shapes: B batch, l tokens of this rank, L of the whole sequence, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from llmkit.errors import ConfigError
from llmkit.model.attention import Attention, Scoring, Visibility, attend_masked
from llmkit.model.documents import Documents
from llmkit.model.rotary import rotate
from llmkit.model.transformer import Block, Transformer
from llmkit.train.parallel.collectives import gathered
from llmkit.train.parallel.limits import sequence_limits

_PART = "_sequence_part"
_ROWS = 1024
"""Queries whose mask exists at once."""


@dataclass(frozen=True)
class SequencePart:
    """The tokens of each sequence that a rank has: pieces that stand in a row in the sequence.

    Args:
        index: of the rank among those that share a sequence.
        count: of these.
        causal: two pieces, that from the other end of the sequence being the second; otherwise one.
        group: of these ranks; None where nothing is exchanged.
    """

    index: int
    count: int
    causal: bool
    group: dist.ProcessGroup | None

    @property
    def pieces(self) -> int:
        """Pieces that a sequence is cut into."""
        return self.count * (2 if self.causal else 1)

    def starts(self, length: int) -> list[int]:
        """Where this rank's pieces begin in a sequence; they are `length // pieces` long.

        Raises:
            ConfigError: the sequence cannot be cut evenly.
        """
        if length % self.pieces:
            raise ConfigError(
                f"sequences of {length:,} tokens cannot be cut into {self.pieces} even pieces for `parallel.context`.",
                hint=f"Choose a `sequence_length` that {self.pieces} divides.",
            )
        size = length // self.pieces
        return [self.index * size, (self.pieces - 1 - self.index) * size] if self.causal else [self.index * size]

    def places(self, length: int) -> Tensor:
        """The places of this rank's tokens in a sequence: int64 [l]."""
        size = length // self.pieces
        return torch.cat([torch.arange(start, start + size) for start in self.starts(length)])

    def whole(self, x: Tensor, dim: int) -> Tensor:
        """What each rank has for its tokens, along a dimension, for all tokens in the sequence's order."""
        assert self.group is not None
        found = gathered(x, dim, self.group)
        if not self.causal:
            return found
        pieces = found.chunk(self.pieces, dim)
        return torch.cat([*pieces[::2], *reversed(pieces[1::2])], dim)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks that share sequences."""
        assert self.group is not None
        total = torch.tensor(values, dtype=torch.float64)
        if dist.get_backend(self.group) == "nccl":
            total = total.cuda()
        dist.all_reduce(total, group=self.group)
        return [float(value) for value in total.tolist()]


def sequence_part(model: nn.Module) -> SequencePart | None:
    """This rank's part of each sequence that the model is trained on; None where it has all of it."""
    return getattr(model, _PART, None)


def share_sequences(model: Transformer, mesh: DeviceMesh, where: str | None = None) -> None:
    """Have attention reach the keys and values of the other ranks' tokens, in place.

    `Transformer.hidden` then takes the rank's own tokens with their places as `positions`; `attention_mask` and
    `documents` are those of whole sequences.

    Args:
        model: whole, or with its products shared already.
        mesh: of one dimension.
        where: place of the settings, for messages.

    Raises:
        ConfigError: the model has something that cannot be computed so.
    """
    for reason in sequence_limits(model.config, mesh.size()):
        raise ConfigError(f"{reason} by `parallel.context`.", where=where, hint="Set `parallel.context` to 1.")
    group = mesh.get_group()
    part = SequencePart(group.rank(), group.size(), model.config.causal, group)
    setattr(model, _PART, part)
    for block in model.blocks:
        assert isinstance(block, Block)
        setattr(block.attention, "forward", partial(_forward, block.attention, part))  # noqa: B010


def _forward(attention: Attention, part: SequencePart, x_BlW: Tensor, visibility: Visibility) -> Tensor:
    """`Attention.forward` of the rank's tokens."""
    query, key, value = attention.project(x_BlW)
    if visibility.rotation is not None:
        query, key = rotate(query, *visibility.rotation), rotate(key, *visibility.rotation)
    keys, values = part.whole(torch.stack((key, value)), 2).transpose(2, 3).unbind()
    ids_BL = None if visibility.documents is None else _document_ids(visibility.documents)
    starts, queries = part.starts(keys.shape[2]), query.transpose(1, 2)
    pieces = queries.chunk(len(starts), 2)
    mixed = [
        _attend_from(start, piece, keys, values, visibility, ids_BL, attention.scoring())
        for start, piece in zip(starts, pieces, strict=True)
    ]
    result: Tensor = attention.output(torch.cat(mixed, 2).transpose(1, 2).flatten(2))
    return result


def _document_ids(documents: Documents) -> Tensor:
    """A number for each token that those of its document share: int64 [B, L]."""
    return (documents.positions == 0).cumsum(1)


def _attend_from(
    start: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visibility: Visibility,
    ids_BL: Tensor | None,
    scoring: Scoring,
) -> Tensor:
    """Attention of queries that begin at a place of the sequence over the keys of all of it: [B, H, l, D].

    A few queries at a time, each over the keys that any of them may see.
    """
    window, causal, length = visibility.window, visibility.causal, key.shape[2]
    mixed = []
    for begin in range(0, query.shape[2], _ROWS):
        rows = query[:, :, begin : begin + _ROWS]
        low = start + begin
        high = low + rows.shape[2]
        first = 0 if window is None else max(0, low - window + (1 if causal else 0))
        last = high if causal else (length if window is None else min(length, high + window))
        mask = _seen(slice(low, high), slice(first, last), visibility, ids_BL, query.device)
        keys, values = key[:, :, first:last], value[:, :, first:last]
        if mask is None and causal and high - low != last - first:
            mask = torch.ones(high - low, last - first, dtype=torch.bool, device=query.device).tril(low - first)
        mixed.append(attend_masked(rows, keys, values, mask, causal and mask is None, scoring))
    return torch.cat(mixed, 2)


def _seen(
    queries: slice, keys: slice, visibility: Visibility, ids_BL: Tensor | None, device: torch.device
) -> Tensor | None:
    """Which of the keys each query sees, where more than causality says it: bool, to be broadcast to [B, H, l, S]."""
    mask = None if visibility.mask is None else visibility.mask[..., keys]
    if ids_BL is not None:
        alike = ids_BL[:, None, queries, None] == ids_BL[:, None, None, keys]
        mask = alike if mask is None else mask & alike
    if mask is None and visibility.window is None:
        return None
    rows = torch.arange(queries.start, queries.stop, device=device)[:, None]
    distance = rows - torch.arange(keys.start, keys.stop, device=device)
    if visibility.causal:
        near = distance >= 0
        near = near if visibility.window is None else near & (distance < visibility.window)
    elif visibility.window is None:
        return mask
    else:
        near = distance.abs() <= visibility.window
    return near if mask is None else mask & near
