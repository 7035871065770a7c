"""The transformer: one module for all families, its parts chosen by `ModelConfig`.

Shapes: B batch, L tokens, W width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmkit.model.attention import Attention, CachePass, Visibility
from llmkit.model.config import ModelConfig
from llmkit.model.heads import CausalLMHead, MaskedLMHead, make_head
from llmkit.model.layers import MLP, Dropout, Embedding, compute_dtype, make_norm
from llmkit.model.rotary import Rotary


class Embeddings(nn.Module):
    """Token vectors, with learned positions and token types where the family has them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.token = Embedding(config.vocab_size, config.width)
        self.position = Embedding(config.context, config.width) if config.positions == "learned" else None
        self.token_type = Embedding(config.token_types, config.width) if config.token_types else None
        self.norm = make_norm(config) if config.embedding_norm else None
        self.dropout = Dropout(config.embedding_dropout)

    def forward(self, input_ids_BL: Tensor, positions: Tensor, token_type_ids_BL: Tensor | None) -> Tensor:
        """Integer [B, L] to [B, L, W]; `positions` is [L] or [B, L]."""
        x_BLW: Tensor = self.token(input_ids_BL)
        if self.position is not None:
            x_BLW = x_BLW + self.position(positions)
        if self.token_type is not None:
            types = torch.zeros_like(input_ids_BL) if token_type_ids_BL is None else token_type_ids_BL
            x_BLW = x_BLW + self.token_type(types)
        if self.norm is not None:
            x_BLW = self.norm(x_BLW)
        dropped: Tensor = self.dropout(x_BLW)
        return dropped


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream, with norms before them or after."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_first = config.norm_position == "pre"
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BLW: Tensor, visibility: Visibility) -> Tensor:
        """[B, L, W] to [B, L, W]."""
        # The residual stream keeps its precision; each branch casts its input once, not once for each projection.
        dtype = compute_dtype(x_BLW)
        if self.norm_first:
            x_BLW = x_BLW + self.dropout(self.attention(self.attention_norm(x_BLW).to(dtype), visibility))
            x_BLW = x_BLW + self.dropout(self.mlp(self.mlp_norm(x_BLW).to(dtype)))
        else:
            x_BLW = self.attention_norm(x_BLW + self.dropout(self.attention(x_BLW.to(dtype), visibility)))
            x_BLW = self.mlp_norm(x_BLW + self.dropout(self.mlp(x_BLW.to(dtype))))
        return x_BLW


class Transformer(nn.Module):
    """A decoder or encoder with its head.

    Attributes:
        config: the architecture.
        embeddings, blocks, norm: the body; `norm` is None where norms come after the branches.
        head: maps the body's output to logits or scores.
        new_parameters: names of parameters that were initialised, not loaded, when a checkpoint was opened.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.new_parameters: tuple[str, ...] = ()
        self.embeddings = Embeddings(config)
        self.rotary = Rotary(config) if config.positions == "rotary" else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = make_norm(config) if config.norm_position == "pre" else None
        self.head = make_head(config)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the output projection the token embedding, where the config says so; to call after replacing either."""
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
        cache: CachePass | None = None,
    ) -> Tensor:
        """The body's output [B, L, W], final norm included: what the head takes.

        Args:
            input_ids, attention_mask, token_type_ids: as for `forward`.
            positions: int [B, L], each token's place in its sequence; by default 0, 1, 2, ...
            cache: earlier tokens' keys and values; needs `positions` where there are any.
        """
        if positions is None:
            length = input_ids.shape[1]
            if self.config.positions == "learned" and length > self.config.context:
                raise ValueError(f"a sequence of {length} tokens exceeds the model's context of {self.config.context}")
            positions = torch.arange(length, device=input_ids.device)
        x_BLW: Tensor = self.embeddings(input_ids, positions, token_type_ids)
        visibility = self._visibility(attention_mask, positions, compute_dtype(x_BLW), cache)
        for block in self.blocks:
            x_BLW = block(x_BLW, visibility)
        return x_BLW if self.norm is None else self.norm(x_BLW)

    def _visibility(
        self,
        attention_mask_BL: Tensor | None,
        positions: Tensor,
        dtype: torch.dtype,
        cache: CachePass | None,
    ) -> Visibility:
        rotation = None if self.rotary is None else self.rotary(positions, dtype)
        if cache is not None:
            return Visibility(causal=cache.causal, mask=cache.mask, rotation=rotation, cache=cache)
        if attention_mask_BL is not None:
            _require_right_padding(attention_mask_BL)
            if not self.config.causal:
                mask = attention_mask_BL[:, None, None, :].to(torch.bool)
                return Visibility(causal=False, mask=mask, rotation=rotation)
        # Under a causal mask no real token sees padding on its right: the fast path needs no mask.
        return Visibility(causal=self.config.causal, rotation=rotation)


def _require_right_padding(attention_mask_BL: Tensor) -> None:
    """Refuse padding before real tokens: positions and causal masking would be silently wrong."""
    right = (attention_mask_BL[:, 1:] <= attention_mask_BL[:, :-1]).all()
    if torch.compiler.is_compiling() or attention_mask_BL.device.type != "cpu":
        # Without waiting for the device.
        torch._assert_async(right, "attention_mask: padding must be on the right")
    elif not right:
        raise ValueError("attention_mask: padding must be on the right, so that a row is ones followed by zeros")
