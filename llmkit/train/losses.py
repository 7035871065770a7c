"""Cross-entropy of language models, alone and fused with the output projection.

Shapes: N tokens, W width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.model.heads import CausalLMHead, MaskedLMHead
from llmkit.model.layers import Linear, compute_dtype
from llmkit.train.contract import Number
from llmkit.train.parallel.vocabulary import Vocabulary, local_rows, shared_vocabulary

LanguageModelHead = CausalLMHead | MaskedLMHead

_CPU_VALUES = 2**18
"""Logits worked on at once on a CPU: with the float32 copy they stay in its second-level cache."""
_GPU_VALUES = 2**28
_PRODUCT_VALUES = 2**22
_PRODUCT_ROWS = 512
"""Tokens whose logits exist at once: this many values, but enough rows for efficient matrix products."""


def _rows_at_once(logits: Tensor) -> int:
    return max(1, (_CPU_VALUES if logits.device.type == "cpu" else _GPU_VALUES) // logits.shape[1])


def _precise(dtype: torch.dtype) -> torch.dtype:
    """float32 at least: the sum over the vocabulary needs it."""
    return torch.promote_types(dtype, torch.float32)


_WHOLE = Vocabulary()


class TokenLoss(NamedTuple):
    """Loss of some tokens.

    Args:
        sum: scalar in nats, in float32 at least; the z-loss included.
        right: int64 scalar, how many targets have the highest logit.
        z_loss: the part of `sum` that is no cross-entropy; without gradient.
    """

    sum: Tensor
    right: Tensor
    z_loss: Tensor


class _Sums:
    """What is added up over rows of logits; float64, so that the order hardly matters."""

    def __init__(self, device: torch.device, vocabulary: Vocabulary = _WHOLE) -> None:
        self.vocabulary = vocabulary
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.right = torch.zeros((), dtype=torch.int64, device=device)
        self.z_loss = torch.zeros((), dtype=torch.float64, device=device)

    def results(self, ctx: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """What makes a `TokenLoss`; but for the first of them nothing has a gradient."""
        z_loss = self.z_loss.to(dtype)
        ctx.mark_non_differentiable(self.right, z_loss)
        return (self.loss + self.z_loss).to(dtype), self.right, z_loss

    def add(
        self,
        logits_nV: Tensor,
        targets_n: Tensor,
        gradient_nV: Tensor | None,
        softcap: float | None = None,
        z_loss: float = 0.0,
    ) -> None:
        """Add rows of logits, a few at a time, and write their gradient, which may be the logits' place."""
        rows, dtype = _rows_at_once(logits_nV), _precise(logits_nV.dtype)
        for begin in range(0, len(targets_n), rows):
            part = slice(begin, begin + rows)
            targets_n1 = targets_n[part, None]
            z_nV = logits_nV[part].to(dtype, copy=True)
            slope_nV = None
            if softcap is not None:
                z_nV.div_(softcap).tanh_()
                slope_nV = 1 - z_nV.square() if gradient_nV is not None else None
                z_nV *= softcap
            highest_n1 = self.vocabulary.highest(z_nV)
            z_nV -= highest_n1
            wanted_n1 = self.vocabulary.wanted(z_nV, targets_n1)
            wanted_n1, weights_n1 = self.vocabulary.total(wanted_n1, z_nV.exp_().sum(1, keepdim=True))
            self.right += (wanted_n1 == 0).sum()
            log_weights_n1 = weights_n1.log()
            self.loss += (log_weights_n1 - wanted_n1).sum(dtype=torch.float64)
            total_n1 = log_weights_n1 + highest_n1
            if z_loss:
                self.z_loss += z_loss * total_n1.square().sum(dtype=torch.float64)
            if gradient_nV is None:
                continue
            # softmax - one_hot, the derivative of each row's loss; the z-loss scales the softmax.
            z_nV *= (1 + 2 * z_loss * total_n1) / weights_n1
            self.vocabulary.subtract_one(z_nV, targets_n1)
            gradient_nV[part] = z_nV if slope_nV is None else z_nV.mul_(slope_nV)


def _filled_up(rows_nW: Tensor) -> Tensor:
    """The rows with zeros behind them, up to a number of few digits in binary, at most a sixteenth more.

    How many tokens are hidden is another number in every batch, and oneDNN keeps what it prepares for each it meets.
    """
    unit = 1 << max(0, len(rows_nW).bit_length() - 5)
    missing = -len(rows_nW) % unit if rows_nW.device.type == "cpu" else 0
    return F.pad(rows_nW, (0, 0, 0, missing)) if missing else rows_nW


def _scaled(gradient: Tensor, upstream: Tensor) -> Tensor:
    if upstream.device.type == "cpu" and upstream.item() == 1.0:
        # The loop differentiates the sum itself: one pass less.
        return gradient
    return gradient * upstream.to(gradient.dtype)


class _CrossEntropySum(torch.autograd.Function):
    """Loss and gradient in one pass over the logits, a few rows at a time."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
        gradient_NV = torch.empty_like(logits_NV) if ctx.needs_input_grad[0] else None
        sums = _Sums(logits_NV.device)
        sums.add(logits_NV, targets_N, gradient_NV, z_loss=z_loss)
        ctx.save_for_backward(gradient_NV)
        return sums.results(ctx, _precise(logits_NV.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        (gradient_NV,) = ctx.saved_tensors
        return _scaled(gradient_NV, upstream), None, None


class _LinearCrossEntropySum(torch.autograd.Function):
    """Products, loss and gradients of some rows at a time; the logits of all never exist."""

    @staticmethod
    def forward(
        ctx: Any,
        features_NW: Tensor,
        weight_VW: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        softcap: float | None,
        z_loss: float,
        dtype: torch.dtype,
        vocabulary: Vocabulary,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wants_features, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        learns = wants_features or wants_weight or wants_bias
        weight = weight_VW.to(dtype)
        bias = None if bias_V is None else bias_V.to(dtype)
        features_gradient = torch.empty_like(features_NW) if wants_features else None
        # More precise than the products: they are added up over the parts.
        wide = _precise(dtype)
        weight_gradient = torch.zeros_like(weight_VW, dtype=wide) if wants_weight else None
        bias_gradient = torch.zeros_like(bias_V, dtype=wide) if wants_bias and bias_V is not None else None
        sums = _Sums(features_NW.device, vocabulary)
        rows = max(_PRODUCT_ROWS, _PRODUCT_VALUES // len(weight))
        for begin in range(0, len(targets_N), rows):
            part = slice(begin, begin + rows)
            count = len(targets_N[part])
            features_nW = _filled_up(features_NW[part].to(dtype))
            logits_nV = F.linear(features_nW, weight, bias)
            real_nV = logits_nV[:count]
            sums.add(real_nV, targets_N[part], real_nV if learns else None, softcap, z_loss)
            logits_nV[count:] = 0
            if features_gradient is not None:
                features_gradient[part] = (logits_nV @ weight)[:count]
            if weight_gradient is not None:
                weight_gradient += logits_nV.t() @ features_nW
            if bias_gradient is not None:
                bias_gradient += logits_nV.sum(0, dtype=wide)
        ctx.save_for_backward(features_gradient, weight_gradient, bias_gradient)
        ctx.dtypes = weight_VW.dtype, None if bias_V is None else bias_V.dtype
        return sums.results(ctx, _precise(dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, upstream: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, None, None]:
        features, weight, bias = (
            None if gradient is None else _scaled(gradient, upstream) for gradient in ctx.saved_tensors
        )
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            features,
            None if weight is None else weight.to(weight_dtype),
            None if bias is None else bias.to(bias_dtype),
            None,
            None,
            None,
            None,
            None,
        )


def cross_entropy_sum(logits: Tensor, targets: Tensor, *, z_loss: float = 0.0) -> TokenLoss:
    """Negative log-likelihood of the targets in nats, summed, computed in float32 at least.

    Args:
        logits: [N, V].
        targets: int64 [N].
        z_loss: weight of the squared log of the softmax's denominator (Chowdhery et al. 2022, section 5).
    """
    return TokenLoss(*_CrossEntropySum.apply(logits, targets, z_loss))


def linear_cross_entropy_sum(
    features: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> TokenLoss:
    """`cross_entropy_sum` of `features @ weight.T + bias`, without ever holding the logits of all tokens.

    Gradients are computed with the loss, so that each logit is computed once. Products are in autocast's precision
    where it is on, the rest in float32 at least.

    Args:
        features: [N, W].
        weight: [V, W]; distributed where ranks share the vocabulary, and then the gradient of the features is this
            rank's part of a sum.
        targets: int64 [N].
        bias: [V], likewise.
        softcap: logits become cap * tanh(logit / cap).
        z_loss: as for `cross_entropy_sum`.
    """
    dtype = compute_dtype(features)
    # Casts are explicit: what autocast does inside a function is not undone in its backward pass.
    with torch.autocast(features.device.type, enabled=False):
        vocabulary = shared_vocabulary(weight)
        rows, shifts = local_rows(weight), None if bias is None else local_rows(bias)
        return TokenLoss(
            *_LinearCrossEntropySum.apply(features, rows, shifts, targets, softcap, z_loss, dtype, vocabulary)
        )


def z_loss_metrics(found: TokenLoss, count: Number) -> dict[str, tuple[Number, Number]]:
    """The cross-entropy and the z-loss of `count` tokens, told apart: what `LossOutput.metrics` takes."""
    return {"loss": (found.sum.detach() - found.z_loss, count), "z_loss": (found.z_loss, count)}


def language_model_loss(head: LanguageModelHead, hidden: Tensor, targets: Tensor, *, z_loss: float = 0.0) -> TokenLoss:
    """Cross-entropy of a language-model head, fused with its output projection where that is a plain linear map.

    Args:
        head: of the model.
        hidden: [N, W], the body's output at the tokens that count.
        targets: int64 [N].
        z_loss: as for `cross_entropy_sum`.
    """
    projection = head.projection
    if type(projection) is not Linear or projection.adapter is not None:
        logits: Tensor = head(hidden)
        return cross_entropy_sum(logits, targets, z_loss=z_loss)
    mapped = head.map(_filled_up(hidden))[: len(hidden)] if isinstance(head, MaskedLMHead) else hidden
    return linear_cross_entropy_sum(
        mapped,
        projection.weight,
        targets,
        bias=projection.bias,
        softcap=head.softcap if isinstance(head, CausalLMHead) else None,
        z_loss=z_loss,
    )
