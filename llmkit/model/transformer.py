"""The transformer: one module for all families, its parts chosen by `ModelConfig`.

Shapes: B batch, L tokens, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from llmkit.model import fast_norm
from llmkit.model.attention import Attention, Visibility
from llmkit.model.config import ModelConfig
from llmkit.model.documents import Documents
from llmkit.model.experts import RoutedMLP
from llmkit.model.heads import CausalLMHead, MaskedLMHead, make_head
from llmkit.model.layers import MLP, Dropout, Embedding, compute_dtype, make_norm
from llmkit.model.rotary import Rotary


class Embeddings(nn.Module):
    """Token vectors, with learned positions and token types where the family has them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.token = Embedding(config.vocab_size, config.width)
        places = config.context + config.position_offset
        self.position = Embedding(places, config.width) if config.positions == "learned" else None
        self.position_offset = config.position_offset
        self.scale = config.width**0.5 if config.scale_embeddings else None
        self.token_type = Embedding(config.token_types, config.width) if config.token_types else None
        self.norm = make_norm(config) if config.embedding_norm else None
        self.dropout = Dropout(config.embedding_dropout)

    def forward(self, input_ids_BL: Tensor, positions: Tensor, token_type_ids_BL: Tensor | None) -> Tensor:
        """Integer [B, L] to [B, L, W]; `positions` is [L] or [B, L]."""
        x_BLW: Tensor = self.token(input_ids_BL)
        if self.scale is not None:
            # Rounded to the embeddings' precision first, as the models were trained.
            x_BLW = x_BLW * torch.tensor(self.scale, dtype=x_BLW.dtype).item()
        if self.position is not None:
            x_BLW = x_BLW + self.position(positions + self.position_offset)
        if self.token_type is not None:
            types = torch.zeros_like(input_ids_BL) if token_type_ids_BL is None else token_type_ids_BL
            x_BLW = x_BLW + self.token_type(types)
        if self.norm is not None:
            x_BLW = self.norm(x_BLW)
        dropped: Tensor = self.dropout(x_BLW)
        return dropped


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream, with norms before them, after them, or both.

    Attributes:
        attention_norm, mlp_norm: before the branches, or after the sums where norms come last of all (`post`).
        attention_output_norm, mlp_output_norm: of what the branches give, before it is added.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.after_sum = config.norm_position == "post"
        self.parallel = config.parallel_residual
        inner = config.norm_position != "output"
        outer = config.norm_position in ("output", "sandwich")
        skipped = config.skip_first_norm and layer == 0
        self.attention_norm = make_norm(config) if inner and not skipped else None
        self.attention = Attention(config, layer)
        self.attention_output_norm = make_norm(config) if outer else None
        self.mlp_norm = make_norm(config) if inner else None
        self.mlp = RoutedMLP(config) if config.experts and layer not in config.dense_layers else MLP(config)
        self.mlp_output_norm = make_norm(config) if outer else None
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BLW: Tensor, visibility: Visibility, routing: list[Tensor] | None = None) -> Tensor:
        """[B, L, W] to [B, L, W]; `routing` takes the router's scores [B, L, E], where there is one."""
        # The residual stream keeps its precision; each branch casts its input once, not once for each projection.
        dtype = compute_dtype(x_BLW)
        if self.after_sum:
            x_BLW = _apply(self.attention_norm, x_BLW + self.dropout(self.attention(x_BLW.to(dtype), visibility)))
            return _apply(self.mlp_norm, x_BLW + self.dropout(self._transform(x_BLW.to(dtype), routing)))
        mixed = self.attention(_branch(self.attention_norm, x_BLW, dtype), visibility)
        attended = x_BLW + self.dropout(_apply(self.attention_output_norm, mixed))
        inner_BLW = _branch(self.mlp_norm, x_BLW if self.parallel else attended, dtype)
        transformed = self._transform(inner_BLW, routing)
        summed: Tensor = attended + self.dropout(_apply(self.mlp_output_norm, transformed))
        return summed

    def _transform(self, x_BLW: Tensor, routing: list[Tensor] | None) -> Tensor:
        transformed: Tensor = self.mlp(x_BLW, routing) if isinstance(self.mlp, RoutedMLP) else self.mlp(x_BLW)
        return transformed


def _apply(norm: nn.Module | None, x: Tensor) -> Tensor:
    normed: Tensor = x if norm is None else norm(x)
    return normed


def _branch(norm: nn.Module | None, x: Tensor, dtype: torch.dtype) -> Tensor:
    """What a branch takes from the residual stream: normalised, in the precision of its products."""
    if norm is not None and fast_norm.fits(norm, x, dtype):
        return fast_norm.fast_rms_norm(x, norm.weight, norm.eps)
    return _apply(norm, x).to(dtype)


class Transformer(nn.Module):
    """A decoder or encoder with its head.

    Attributes:
        config: the architecture.
        embeddings, blocks, norm: the body; `norm` is None where norms come after the sums.
        head: maps the body's output to logits or scores.
        new_parameters: names of parameters that were initialised, not loaded, when a checkpoint was opened.
        generation_settings: what the opened checkpoint's generation_config.json says beyond special tokens.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.new_parameters: tuple[str, ...] = ()
        self.generation_settings: Mapping[str, Any] = {}
        self.embeddings = Embeddings(config)
        self.rotary = Rotary(config) if config.positions == "rotary" else None
        own_local = config.positions == "rotary" and config.local_rope_theta is not None
        self.local_rotary = Rotary(config, local=True) if own_local else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = None if config.norm_position == "post" else make_norm(config)
        self.head = make_head(config)
        self.tie_weights()

    @property
    def dtype(self) -> torch.dtype:
        """Of the token vectors, whatever linear maps are kept in: the model computes in it, or in autocast's."""
        return self.embeddings.token.dtype

    @property
    def device(self) -> torch.device:
        """Where the token vectors are."""
        return self.embeddings.token.device

    def tie_weights(self) -> None:
        """Make the output projection the token embedding, where the config says so; to call after replacing either."""
        if type(self.embeddings.token) is not Embedding:
            return  # Quantized rows, which read the output projection's.
        if self.config.tie_embeddings and isinstance(self.head, CausalLMHead | MaskedLMHead):
            self.head.projection.weight = self.embeddings.token.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits or scores.

        Args:
            input_ids: int [B, L].
            attention_mask: [B, L], 1 at real tokens and 0 at padding, which must be on the right.
            token_type_ids: int [B, L], the segment of each token, for families that have them; by default all 0.

        Returns:
            [B, L, V] of a language-model head, [B, labels] of a classification head, [B] of a reward head.

        Raises:
            ValueError: padding is not on the right, or the sequence is longer than learned positions reach.
        """
        scores: Tensor = self.head(self.hidden(input_ids, attention_mask, token_type_ids), attention_mask)
        return scores

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        documents: Documents | None = None,
        routing: list[Tensor] | None = None,
    ) -> Tensor:
        """The body's output [B, L, W], final norm included: what the head takes.

        Args:
            input_ids, attention_mask, token_type_ids: as for `forward`.
            positions: int [B, L], each token's place in its sequence; by default 0, 1, 2, ...
            documents: several documents in a row, each as if it stood in a row of its own; in place of
                `attention_mask` and `positions`.
            routing: takes the router's scores [B, L, E] of each layer with experts, for `load_balancing_loss`.
        """
        if positions is None:
            length = input_ids.shape[1]
            longest = length if documents is None else documents.longest
            if self.config.positions == "learned" and longest > self.config.context:
                raise ValueError(f"a sequence of {longest} tokens exceeds the model's context of {self.config.context}")
            positions = torch.arange(length, device=input_ids.device)
            if documents is not None and self.config.positions == "learned":
                positions = documents.positions
        x_BLW: Tensor = self.embeddings(input_ids, positions, token_type_ids)
        everything, local = self._views(attention_mask, positions, compute_dtype(x_BLW), documents)
        for layer, block in enumerate(self.blocks):
            # A list for each block: compiled code depends on how many scores are there already.
            scores: list[Tensor] | None = None if routing is None else []
            x_BLW = block(x_BLW, local if layer in self.config.local_layers else everything, scores)
            if routing is not None and scores is not None:
                routing += scores
        return x_BLW if self.norm is None else self.norm(x_BLW)

    def _views(
        self,
        attention_mask_BL: Tensor | None,
        positions: Tensor,
        dtype: torch.dtype,
        documents: Documents | None,
    ) -> tuple[Visibility, Visibility]:
        """What layers that see everything see, and what local ones do."""
        mask, lengths = None, None
        if attention_mask_BL is not None:
            _require_right_padding(attention_mask_BL)
            lengths = attention_mask_BL.sum(dim=1)
            # Under a causal mask no real token sees padding on its right: the fast path needs no mask.
            if not self.config.causal and documents is None:
                mask = attention_mask_BL[:, None, None, :].to(torch.bool)
        everything = Visibility(causal=self.config.causal, mask=mask, documents=documents)
        local = replace(everything, window=self.config.window)
        if self.rotary is None:
            return everything, local
        rotation = self.rotary(positions, dtype, lengths)
        own = rotation if self.local_rotary is None else self.local_rotary(positions, dtype, lengths)
        return replace(everything, rotation=rotation), replace(local, rotation=own)


def _require_right_padding(attention_mask_BL: Tensor) -> None:
    """Refuse padding before real tokens: positions and causal masking would be silently wrong."""
    right = (attention_mask_BL[:, 1:] <= attention_mask_BL[:, :-1]).all()
    if torch.compiler.is_compiling() or attention_mask_BL.device.type != "cpu":
        # Without waiting for the device.
        torch._assert_async(right, "attention_mask: padding must be on the right")
    elif not right:
        raise ValueError("attention_mask: padding must be on the right, so that a row is ones followed by zeros")
