"""What stands on the body: logits over the vocabulary, scores of a sequence or of each token, or an embedding.

Each head is called as `head(hidden, attention_mask)` with the body's output [B, L, W]; `attention_mask` [B, L] is 1 at
real tokens, None where all are.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.model.config import ModelConfig
from llmkit.model.layers import ACTIVATIONS, Dropout, Linear, make_norm


class CausalLMHead(nn.Module):
    """Logits of the next token, [B, L, V]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.projection = Linear(config.width, config.vocab_size, bias=False)
        self.softcap = config.logit_softcap

    def map(self, x: Tensor) -> Tensor:
        """What the output projection takes: the body's output."""
        return x

    def forward(self, hidden_BLW: Tensor, attention_mask_BL: Tensor | None = None) -> Tensor:
        """[B, L, W] to [B, L, V]; any leading shape will do."""
        logits: Tensor = self.projection(hidden_BLW)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class _MappedHead(nn.Module):
    """A head that maps features before it scores them.

    `tanh` and `relu` are a linear map and that activation; `transform` is a linear map, the body's activation and a
    norm, as before the logits of a masked language model (Devlin et al. 2018).
    """

    def __init__(self, config: ModelConfig, mapping: Literal["none", "tanh", "relu", "transform"]) -> None:
        super().__init__()
        self.mapping = mapping
        pooled, transformed = mapping in ("tanh", "relu"), mapping == "transform"
        self.pooler = Linear(config.width, config.width, bias=True) if pooled else None
        self.transform = Linear(config.width, config.width, bias=config.transform_bias) if transformed else None
        self.activation = ACTIVATIONS[config.activation] if transformed else None
        self.norm = make_norm(config) if transformed else None

    def map(self, x: Tensor) -> Tensor:
        """[..., W] to [..., W]."""
        if self.pooler is not None:
            pooled = self.pooler(x)
            return torch.tanh(pooled) if self.mapping == "tanh" else F.relu(pooled)
        if self.transform is None or self.activation is None or self.norm is None:
            return x
        mapped: Tensor = self.norm(self.activation(self.transform(x)))
        return mapped


class MaskedLMHead(_MappedHead):
    """Logits of the token under each position, [B, L, V], after BERT's transform (Devlin et al. 2018)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, "transform")
        self.projection = Linear(config.width, config.vocab_size, bias=True)

    def forward(self, hidden_BLW: Tensor, attention_mask_BL: Tensor | None = None) -> Tensor:
        """[B, L, W] to [B, L, V]; any leading shape will do, such as the masked tokens alone."""
        logits: Tensor = self.projection(self.map(hidden_BLW))
        return logits


class SequenceHead(_MappedHead):
    """Scores of a whole sequence: logits of its labels [B, labels], or for a reward head one number each, [B].

    They are those of one token or of the mean, as `ModelConfig.pooling` says, mapped as `pooler` says. The final map is
    computed in the weights' precision whatever autocast says: differences of rewards are small.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, config.pooler)
        self.pooling = config.pooling
        self.scalar = config.head == "reward"
        self.dropout = Dropout(config.head_dropout)
        self.score = Linear(config.width, len(config.labels) or 1, bias=not config.causal)

    def forward(self, hidden_BLW: Tensor, attention_mask_BL: Tensor | None = None) -> Tensor:
        """[B, L, W] to [B, labels] or [B]."""
        pooled = self.map(pool(hidden_BLW, attention_mask_BL, self.pooling))
        with torch.autocast(pooled.device.type, enabled=False):
            scores: Tensor = self.score(self.dropout(pooled.to(self.score.weight.dtype)))
        return scores.squeeze(-1) if self.scalar else scores


class TokenHead(_MappedHead):
    """Logits of each token's labels, [B, L, labels]; or of an answer beginning and ending there, [B, L, 2]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, "transform" if config.pooler == "transform" else "none")
        self.dropout = Dropout(config.head_dropout)
        self.score = Linear(config.width, len(config.labels) or 2, bias=True)

    def forward(self, hidden_BLW: Tensor, attention_mask_BL: Tensor | None = None) -> Tensor:
        """[B, L, W] to [B, L, labels] or [B, L, 2]."""
        scores: Tensor = self.score(self.dropout(self.map(hidden_BLW)))
        return scores


class EmbeddingHead(nn.Module):
    """One vector for a whole sequence, in fp32; of length 1 with `ModelConfig.normalize_embedding` (Reimers 2019)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.normalize = config.normalize_embedding

    def forward(self, hidden_BLW: Tensor, attention_mask_BL: Tensor | None = None) -> Tensor:
        """[B, L, W] to [B, W]."""
        pooled = pool(hidden_BLW.float(), attention_mask_BL, self.pooling)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled


def pool(hidden_BLW: Tensor, attention_mask_BL: Tensor | None, pooling: Literal["first", "last", "mean"]) -> Tensor:
    """The vector that stands for each sequence, [B, W]: its first or last real token's, or the mean over real ones."""
    if pooling == "first":
        return hidden_BLW[:, 0]
    if attention_mask_BL is None:
        return hidden_BLW[:, -1] if pooling == "last" else hidden_BLW.mean(dim=1)
    if pooling == "mean":
        real_BL1 = attention_mask_BL[:, :, None].to(hidden_BLW.dtype)
        return (hidden_BLW * real_BL1).sum(dim=1) / real_BL1.sum(dim=1).clamp(min=1)
    last_B = (attention_mask_BL.sum(dim=1) - 1).clamp(min=0).long()
    return hidden_BLW[torch.arange(len(last_B), device=last_B.device), last_B]


def make_head(config: ModelConfig) -> nn.Module:
    """The head that the config names."""
    if config.head == "causal-lm":
        return CausalLMHead(config)
    if config.head == "masked-lm":
        return MaskedLMHead(config)
    if config.head == "embedding":
        return EmbeddingHead(config)
    return SequenceHead(config) if config.head in ("classification", "reward") else TokenHead(config)
