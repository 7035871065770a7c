"""What stands on the body: logits over the vocabulary, or scores of a whole sequence.

Each head is called as `head(hidden, attention_mask)` with the body's output [B, L, W]; `attention_mask` [B, L] is 1 at
real tokens, None where all are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmkit.model.config import ModelConfig
from llmkit.model.layers import ACTIVATIONS, Dropout, Linear, make_norm


class CausalLMHead(nn.Module):
    """Logits of the next token, [B, L, V]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.projection = Linear(config.width, config.vocab_size, bias=False)
        self.softcap = config.logit_softcap

    def forward(self, hidden_BLW: Tensor, attention_mask_BL: Tensor | None = None) -> Tensor:
        """[B, L, W] to [B, L, V]; any leading shape will do."""
        logits: Tensor = self.projection(hidden_BLW)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class MaskedLMHead(nn.Module):
    """Logits of the token under each position, [B, L, V], after BERT's transform (Devlin et al. 2018)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transform = Linear(config.width, config.width, bias=True)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = make_norm(config)
        self.projection = Linear(config.width, config.vocab_size, bias=True)

    def forward(self, hidden_BLW: Tensor, attention_mask_BL: Tensor | None = None) -> Tensor:
        """[B, L, W] to [B, L, V]; any leading shape will do, such as the masked tokens alone."""
        logits: Tensor = self.projection(self.norm(self.activation(self.transform(hidden_BLW))))
        return logits


class SequenceHead(nn.Module):
    """Scores of a whole sequence: logits of its labels [B, labels], or for a reward head one number each, [B].

    A causal body is read at the last real token; a bidirectional one at its first, through a tanh pooler. The final
    map is computed in the weights' precision whatever autocast says: differences of rewards are small.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.causal = config.causal
        self.scalar = config.head == "reward"
        self.pooler = None if config.causal else Linear(config.width, config.width, bias=True)
        self.dropout = Dropout(config.head_dropout)
        self.score = Linear(config.width, len(config.labels) or 1, bias=not config.causal)

    def forward(self, hidden_BLW: Tensor, attention_mask_BL: Tensor | None = None) -> Tensor:
        """[B, L, W] to [B, labels] or [B]."""
        pooled = self._pool(hidden_BLW, attention_mask_BL)
        with torch.autocast(pooled.device.type, enabled=False):
            scores: Tensor = self.score(self.dropout(pooled.to(self.score.weight.dtype)))
        return scores.squeeze(-1) if self.scalar else scores

    def _pool(self, hidden_BLW: Tensor, attention_mask_BL: Tensor | None) -> Tensor:
        if self.pooler is not None:
            return torch.tanh(self.pooler(hidden_BLW[:, 0]))
        if attention_mask_BL is None:
            return hidden_BLW[:, -1]
        last_B = (attention_mask_BL.sum(dim=1) - 1).clamp(min=0).long()
        return hidden_BLW[torch.arange(len(last_B), device=last_B.device), last_B]


def make_head(config: ModelConfig) -> nn.Module:
    """The head that the config names."""
    if config.head == "causal-lm":
        return CausalLMHead(config)
    return MaskedLMHead(config) if config.head == "masked-lm" else SequenceHead(config)
