"""Routed experts: many MLPs in one layer, of which each token goes through the few that a router chooses.

Shazeer et al. 2017, "Outrageously large neural networks"; the balance of their use as in Fedus et al. 2021, "Switch
transformers", equations 4 to 6, over the chosen experts of each token. No token is dropped.

Shapes: B batch, L tokens, N tokens of all rows, K experts of each token, E experts, M = N x K, W width, F expert width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.model.config import ModelConfig
from llmkit.model.layers import ACTIVATIONS

_SLOPE, _LIMIT = 1.702, 7.0
"""Of the clamped SwiGLU (OpenAI 2025, gpt-oss)."""


class Router(nn.Module):
    """A score of every expert for every token. Its weights are left unset, as in `Linear`.

    Where autocast lowers the precision of products, scores keep that of the weights: small differences decide.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.experts, config.width))
        self.bias = nn.Parameter(torch.empty(config.experts)) if config.expert_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] to [..., E]."""
        if x.dtype == self.weight.dtype:
            return F.linear(x, self.weight, self.bias)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class ExpertLinear(nn.Module):
    """A linear map for each expert: weights [E, outputs, inputs], biases [E, outputs]; left unset, as in `Linear`."""

    def __init__(self, experts: int, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(experts, outputs)) if bias else None

    def of_each(self) -> Callable[[int], tuple[Tensor, Tensor | None]]:
        """Weight and bias by expert."""
        weights: Tensor | Sequence[Tensor] = self.weight
        biases: Tensor | Sequence[Tensor] | None = self.bias
        if torch.is_grad_enabled():
            # A slice's gradient is as large as the whole: taken apart at once, each adds to it in its own place.
            weights, biases = self.weight.unbind(), None if self.bias is None else self.bias.unbind()
        return lambda expert: (weights[expert], None if biases is None else biases[expert])

    def grouped(self, x_MW: Tensor, ends_E: Tensor, sorted_M: Tensor) -> Tensor:
        """Rows sorted by expert through the maps, in one operation; `ends_E` is where each expert's rows end."""
        mixed = F.grouped_mm(x_MW, self.weight.to(x_MW.dtype).transpose(1, 2), offs=ends_E)
        if self.bias is None:
            return mixed
        # A product: a lookup's gradient would be summed in no fixed order.
        chosen_ME = sorted_M[:, None] == torch.arange(len(self.bias), device=x_MW.device)
        return mixed + chosen_ME.to(x_MW.dtype) @ self.bias.to(x_MW.dtype)


class Experts(nn.Module):
    """MLPs side by side, each its own tokens': down(activation(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.combine = gate_with(config.activation)
        self.gate = ExpertLinear(config.experts, config.width, config.expert_width, config.expert_bias)
        self.up = ExpertLinear(config.experts, config.width, config.expert_width, config.expert_bias)
        self.down = ExpertLinear(config.experts, config.expert_width, config.width, config.expert_bias)

    def forward(self, x_MW: Tensor, sorted_M: Tensor) -> Tensor:
        """Rows sorted by expert, [M, W] to [M, W]; `sorted_M` says whose each is."""
        experts = torch.arange(len(self.gate.weight), device=x_MW.device)
        ends_E = torch.searchsorted(sorted_M, experts, right=True, out_int32=True)
        if self._are_one_operation(x_MW):
            gate, up = self.gate.grouped(x_MW, ends_E, sorted_M), self.up.grouped(x_MW, ends_E, sorted_M)
            return self.down.grouped(self.combine(gate, up), ends_E, sorted_M)
        ends = ends_E.tolist()
        parts = x_MW.split([end - start for start, end in zip([0, *ends], ends, strict=False)])
        return self.each([(expert, part) for expert, part in enumerate(parts) if len(part)])

    def each(self, parts: Sequence[tuple[int, Tensor]]) -> Tensor:
        """Some experts on rows of their own, one expert after the other."""
        gates, ups, downs = self.gate.of_each(), self.up.of_each(), self.down.of_each()
        mixed = []
        for expert, x in parts:
            inner = self.combine(F.linear(x, *gates(expert)), F.linear(x, *ups(expert)))
            mixed.append(F.linear(inner, *downs(expert)))
        return torch.cat(mixed)

    def _are_one_operation(self, x_MW: Tensor) -> bool:
        """Whether all products of a kind can be one: on a GPU, where rows begin at multiples of 16 bytes."""
        if x_MW.device.type != "cuda" or x_MW.dtype not in (torch.bfloat16, torch.float16):
            return False
        aligned = all(size * x_MW.element_size() % 16 == 0 for size in self.down.weight.shape[1:])
        return aligned and torch.cuda.get_device_capability(x_MW.device) >= (8, 0)


class RoutedMLP(nn.Module):
    """What a token's best experts give, weighted by the router's shares.

    Attributes:
        router: scores the experts; the best `per_token` are chosen.
        experts: the MLPs.
        normalised: the shares of a token's experts sum to one; otherwise they are shares among all experts.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.per_token = config.experts_per_token
        self.normalised = config.renormalize_experts
        self.router = Router(config)
        self.experts = Experts(config)

    def forward(self, x: Tensor, routing: list[Tensor] | None = None) -> Tensor:
        """[..., W] to [..., W].

        Args:
            x: tokens.
            routing: takes the router's scores, [..., E].
        """
        scores = self.router(x)
        if routing is not None:
            routing.append(scores)
        x_NW = x.reshape(-1, x.shape[-1])
        shares_NK, chosen_NK = self.choose(scores.view(len(x_NW), -1))
        if len(x_NW) == 1 and x.device.type == "cpu":
            mixed_NKW = self.experts.each([(expert, x_NW) for expert in chosen_NK[0].tolist()])[None]
        else:
            mixed_NKW = self._sorted(x_NW, chosen_NK)
        return (mixed_NKW * shares_NK[..., None]).sum(dim=1).to(mixed_NKW.dtype).view(x.shape)

    def choose(self, scores_NE: Tensor) -> tuple[Tensor, Tensor]:
        """Shares, fp32 at least, and numbers of each token's experts, both [N, K]."""
        precise = scores_NE.to(torch.promote_types(scores_NE.dtype, torch.float32))
        if self.normalised:
            best_NK, chosen_NK = precise.topk(self.per_token, dim=-1)
            return best_NK.softmax(dim=-1), chosen_NK
        shares_NK, chosen_NK = precise.softmax(dim=-1).topk(self.per_token, dim=-1)
        return shares_NK, chosen_NK

    def _sorted(self, x_NW: Tensor, chosen_NK: Tensor) -> Tensor:
        """What each token's experts give, [N, K, W], by way of tokens sorted by expert."""
        sorted_M, order_M = chosen_NK.flatten().sort(stable=True)
        back_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(len(order_M), device=x_NW.device))
        x_MW: Tensor = _Rows.apply(x_NW, order_M // self.per_token, back_M)
        mixed: Tensor = _Rows.apply(self.experts(x_MW, sorted_M), back_M, order_M)
        return mixed.view(*chosen_NK.shape, -1)


class _Rows(torch.autograd.Function):
    """Rows of a matrix [N, W] by index, [M, W], each row as often as any other.

    `back` says where the copies are: those of row n at back[n K : n K + K]. So its gradient is a lookup and a sum too,
    in a fixed order, where torch's would add rows in whatever order they come.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        ctx.rows = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        copies = gradient.index_select(0, back)
        return copies if ctx.rows == len(back) else copies.view(ctx.rows, -1, copies.shape[-1]).sum(dim=1), None, None


def gate_with(activation: str) -> Callable[[Tensor, Tensor], Tensor]:
    """What makes one of a gate and what it gates: activation(gate) * up, or the clamped SwiGLU of gpt-oss."""
    if activation == "clamped_swiglu":
        return _clamped_swiglu
    function = ACTIVATIONS[activation]
    return lambda gate, up: function(gate) * up


def _clamped_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.clamp(max=_LIMIT), up.clamp(-_LIMIT, _LIMIT)
    return (up + 1) * gate * torch.sigmoid(_SLOPE * gate)


def load_balancing_loss(
    routing: Sequence[Tensor], experts_per_token: int, attention_mask: Tensor | None = None
) -> Tensor:
    """How unevenly experts are used (Fedus et al. 2021, equations 4 to 6): a scalar, fp32.

    E times the sum over experts of f P, with f the number of times that an expert was chosen for each token and P its
    mean probability, both over the real tokens of all layers together. `experts_per_token` where use is even, up to E
    where all tokens go to the same experts. The gradient flows through P.

    Args:
        routing: the router's scores of each layer, [B, L, E].
        experts_per_token: how many of them each token chose.
        attention_mask: [B, L], 0 at tokens that do not count; by default all do.
    """
    scores = torch.stack(list(routing)).flatten(1, -2)
    probabilities = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=-1)
    chosen = torch.zeros_like(probabilities).scatter(-1, probabilities.topk(experts_per_token).indices, 1.0)
    if attention_mask is None:
        use_E, mean_E = chosen.mean(dim=(0, 1)), probabilities.mean(dim=(0, 1))
    else:
        counts = attention_mask.reshape(1, -1, 1).to(probabilities.dtype)
        tokens = counts.sum() * len(scores)
        use_E, mean_E = ((part * counts).sum(dim=(0, 1)) / tokens for part in (chosen, probabilities))
    return len(use_E) * (use_E * mean_E).sum()
