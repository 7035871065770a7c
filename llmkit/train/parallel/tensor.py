"""Tensor parallelism: ranks that share each matrix product (Shoeybi et al. 2019) and, between the products, the tokens
of each sequence (Korthikanti et al. 2023).

Query, key, value, gate and up are cut by rows, output and down by columns, the token embedding and the output
projection by the vocabulary. Residual stream, norms and dropout work on each rank's part of the tokens:

    tokens of a rank -> norm -> gather tokens -> heads or features of a rank -> sum, scatter tokens -> tokens of a rank

Weights become distributed tensors; what is computed is plain tensors, and the exchange stands in `collectives`. After
the final norm tokens are gathered once more: each rank goes on to the logits of its part of the vocabulary. From there
back to the last scatter gradients are parts of a sum over the ranks, also those of weights that all have alike, such
as norms, which are summed where such a weight is used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from llmkit.errors import ConfigError
from llmkit.model.attention import Attention
from llmkit.model.heads import CausalLMHead, MaskedLMHead
from llmkit.model.layers import MLP, Embedding, Linear, OffsetRMSNorm
from llmkit.model.transformer import Block, Embeddings, Transformer
from llmkit.train.parallel.collectives import Group, gathered, gathered_for_all, scattered, shared, summed
from llmkit.train.parallel.limits import product_limits, vocabulary_limits

_TOKENS = 1
"""Dimension of the tokens in [B, L, W]."""


def share_products(model: Transformer, mesh: DeviceMesh, where: str | None = None) -> None:
    """Leave each rank its part of every matrix, and have the model compute with the others, in place.

    `Transformer.hidden` then gives every rank the whole [B, L, W], whose gradient may be a part of a sum; calling the
    model gives all the logits. The fused loss of `llmkit.train.losses` makes those of the rank's vocabulary alone.

    Args:
        model: the same on all ranks, or on "meta"; with a language-model head, no adapter, nothing quantized.
        mesh: of one dimension.
        where: place of the settings, for messages.

    Raises:
        ConfigError: the model has something that cannot be shared.
    """
    ranks = mesh.size()
    for reason in (*product_limits(model.config, ranks), *vocabulary_limits(model.config.vocab_size, ranks)):
        raise ConfigError(f"{reason} by `parallel.tensor`.", where=where, hint="Set `parallel.tensor` to 1.")
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    if any(type(linear) is not Linear or linear.adapter is not None for linear in linears):
        raise ConfigError(
            "adapters and quantized maps are not shared among ranks by `parallel.tensor`.",
            where=where,
            hint="Set `parallel.tensor` to 1.",
        )
    sharing = _Sharing(mesh)
    sharing.embeddings(model.embeddings)
    for block in model.blocks:
        assert isinstance(block, Block)
        sharing.block(block)
    head = model.head
    assert isinstance(head, CausalLMHead | MaskedLMHead)
    sharing.head(head, model.config.vocab_size)
    if model.norm is not None:
        sharing.norm(model.norm)
    (model.blocks[-1] if model.norm is None else model.norm).register_forward_hook(sharing.gather_result)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters()), "every weight has been placed"


class _Sharing:
    """Changes the modules of one model."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self.group = mesh.get_group()
        self._placed: dict[int, nn.Parameter] = {}

    def embeddings(self, module: Embeddings) -> None:
        """Token vectors by vocabulary; tables that all ranks read alike, each at its tokens' places."""
        self._place(module.token, Shard(0))
        _set_forward(module.token, partial(_vocabulary_lookup, module.token, self.group))
        for table in (module.position, module.token_type):
            if table is not None:
                self._place(table, Replicate())
                _set_forward(table, partial(_lookup, table, self.group))
        if module.norm is not None:
            self.norm(module.norm)

    def block(self, block: Block) -> None:
        """Attention by heads, the MLP by inner features, norms by tokens."""
        attention, mlp = block.attention, block.mlp
        assert isinstance(mlp, MLP)
        for column in (attention.query, attention.key, attention.value, mlp.gate, mlp.up):
            if column is not None:
                self._place(column, Shard(0))
                _set_forward(column, partial(_column, column))
        for row in (attention.output, mlp.down):
            self._place(row, Shard(1), bias=Replicate())
            _set_forward(row, partial(_row, row, self.group))
        for branch in (attention, mlp):
            branch.register_forward_pre_hook(self.gather_input)
        for norm in (block.attention_norm, block.attention_output_norm, block.mlp_norm, block.mlp_output_norm):
            if norm is not None:
                self.norm(norm)
        self._head_norms(attention)

    def _head_norms(self, attention: Attention) -> None:
        for norm in (attention.query_norm, attention.key_norm):
            if norm is None:
                continue
            if attention.norms_heads:
                self.norm(norm)
            else:
                assert isinstance(norm, nn.RMSNorm)
                self._place(norm, Shard(0))
                _set_forward(norm, partial(_divided_rms_norm, norm, self.group))

    def norm(self, norm: nn.Module) -> None:
        """A norm whose weights all ranks have, each using them for its own tokens or heads."""
        self._place(norm, Replicate())
        _set_forward(norm, partial(_norm, norm, self.group))

    def head(self, head: CausalLMHead | MaskedLMHead, vocab_size: int) -> None:
        """The output projection by vocabulary; what comes before it is computed by all ranks alike."""
        self._place(head.projection, Shard(0))
        _set_forward(head.projection, partial(_logits, head.projection, self.group, vocab_size))
        if isinstance(head, MaskedLMHead):
            assert head.transform is not None
            assert head.norm is not None
            self._place(head.transform, Replicate())
            _set_forward(head.transform, partial(_whole, head.transform, self.group))
            self.norm(head.norm)

    def gather_input(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """A branch takes all tokens."""
        return (gathered(inputs[0], _TOKENS, self.group), *inputs[1:])

    def gather_result(self, _: nn.Module, inputs: tuple[Any, ...], result: Tensor) -> Tensor:
        """The body gives all tokens."""
        # Not a view, which FSDP2 warns of.
        return gathered(result, _TOKENS, self.group).clone()

    def _place(self, module: nn.Module, weight: Placement, bias: Placement | None = None) -> None:
        for name, parameter in list(module.named_parameters(recurse=False)):
            placed = self._placed.get(id(parameter))
            if placed is None:
                placement = bias if bias is not None and name == "bias" else weight
                # Every rank has all values: none is sent.
                part = distribute_tensor(parameter.detach(), self.mesh, [placement], src_data_rank=None)
                placed = nn.Parameter(part.clone(), requires_grad=parameter.requires_grad)
                # Under both keys: the one that was, and the one that a tied module has by now.
                self._placed[id(parameter)] = self._placed[id(placed)] = placed
            setattr(module, name, placed)


def _set_forward(module: nn.Module, forward: Callable[..., Tensor]) -> None:
    # The class stays: what a module is, is asked by its type in other places.
    setattr(module, "forward", forward)  # noqa: B010


def _part(weight: Tensor | None) -> Tensor | None:
    """The rank's part of a weight; its gradient is that part of the weight's."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def _common(weight: Tensor | None, group: Group) -> Tensor | None:
    """A weight that all ranks have, each using it in its own way."""
    return None if weight is None else shared(weight.to_local() if isinstance(weight, DTensor) else weight, group)


def _column(linear: Linear, x_BLW: Tensor) -> Tensor:
    weight = _part(linear.weight)
    assert weight is not None
    return F.linear(x_BLW, weight, _part(linear.bias))


def _row(linear: Linear, group: Group, x_BLF: Tensor) -> Tensor:
    weight = _part(linear.weight)
    assert weight is not None
    mixed = scattered(F.linear(x_BLF, weight), _TOKENS, group)
    bias = _common(linear.bias, group)
    return mixed if bias is None else mixed + bias.to(mixed.dtype)


def _whole(linear: Linear, group: Group, x: Tensor) -> Tensor:
    weight = _common(linear.weight, group)
    assert weight is not None
    return F.linear(x, weight, _common(linear.bias, group))


def _logits(linear: Linear, group: Group, vocab_size: int, x: Tensor) -> Tensor:
    """All logits, on every rank."""
    logits = _column(linear, x)
    missing = -(-vocab_size // group.size()) - logits.shape[-1]
    whole = gathered_for_all(F.pad(logits, (0, missing)), x.dim() - 1, group)
    return whole[..., :vocab_size]


def _norm(norm: nn.Module, group: Group, x: Tensor) -> Tensor:
    weight = _common(norm.weight, group)  # type: ignore[arg-type]
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(x, norm.normalized_shape, weight, _common(norm.bias, group), norm.eps)
    assert isinstance(norm, nn.RMSNorm)
    assert weight is not None
    shape = list(norm.normalized_shape)
    if isinstance(norm, OffsetRMSNorm):
        return F.rms_norm(x.float(), shape, 1.0 + weight.float(), norm.eps).to(x.dtype)
    return F.rms_norm(x, shape, weight, norm.eps)


def _divided_rms_norm(norm: nn.RMSNorm, group: Group, x_BLF: Tensor) -> Tensor:
    """An RMS norm over features that ranks have parts of; computed, and given, in float32 at least."""
    weight = _part(norm.weight)
    assert weight is not None
    assert norm.eps is not None
    wide_BLF = x_BLF.to(torch.promote_types(x_BLF.dtype, torch.float32))
    square_BL1 = summed(wide_BLF.square().sum(-1, keepdim=True), group) / norm.normalized_shape[0]
    scale = 1.0 + weight.float() if isinstance(norm, OffsetRMSNorm) else weight
    return wide_BLF * torch.rsqrt(square_BL1 + norm.eps) * scale


def _vocabulary_lookup(embedding: Embedding, group: Group, ids_BL: Tensor) -> Tensor:
    """Vectors of the rank's part of the tokens; each comes from the rank that has its row."""
    if ids_BL.shape[1] % group.size():
        raise ConfigError(
            f"sequences of {ids_BL.shape[1]:,} tokens cannot be divided among {group.size()} ranks.",
            hint="Choose a `sequence_length` that `parallel.tensor` divides, and what `parallel.context` leaves of it.",
        )
    rows = _part(embedding.weight)
    assert rows is not None
    places_BL = ids_BL - group.rank() * -(-embedding.num_embeddings // group.size())
    absent_BL = (places_BL < 0) | (places_BL >= len(rows))
    x_BLW = F.embedding(places_BL.masked_fill(absent_BL, 0), rows)
    return scattered(x_BLW.masked_fill(absent_BL[:, :, None], 0.0), _TOKENS, group)


def _lookup(table: Embedding, group: Group, places: Tensor) -> Tensor:
    """Vectors at the places [L] or [B, L] of the rank's tokens."""
    weight = _common(table.weight, group)
    assert weight is not None
    return F.embedding(places.chunk(group.size(), -1)[group.rank()], weight)
