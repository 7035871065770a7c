"""A training loop as one writes it by hand for speed: bfloat16 autocast over float32 weights where products are fastest
in it, fused projections, torch's attention kernel, a fused AdamW, and the whole model with its loss compiled. BERT's
head scores the hidden tokens alone."""

# ruff: noqa: D101, D102

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from loops.turns import MASK_ID, Turns, hidden_tokens, random_tokens
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)


class LlamaBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, cosine, sine), _rotate(k, cosine, sine)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class Llama(nn.Module):
    def __init__(self, shape: dict[str, int]) -> None:
        super().__init__()
        width, head = shape["width"], shape["width"] // shape["heads"]
        self.embedding = nn.Embedding(shape["vocab"], width)
        self.blocks = nn.ModuleList(
            LlamaBlock(width, shape["heads"], shape["mlp_width"]) for _ in range(shape["layers"])
        )
        self.norm = RMSNorm(width)
        angles = torch.arange(shape["length"])[:, None] * 10000.0 ** (-torch.arange(0, head, 2) / head)
        dtype = torch.bfloat16 if shape["bf16"] else torch.float32
        self.register_buffer("cosine", angles.cos().to(dtype))
        self.register_buffer("sine", angles.sin().to(dtype))

    def forward(self, tokens: Tensor, targets: Tensor, places: Tensor | None = None) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cosine, self.sine)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets)


class BertBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = self.norm1(x + self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    def __init__(self, shape: dict[str, int]) -> None:
        super().__init__()
        width = shape["width"]
        self.embedding, self.position = nn.Embedding(shape["vocab"], width), nn.Embedding(shape["context"], width)
        self.segment, self.norm = nn.Embedding(2, width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            BertBlock(width, shape["heads"], shape["mlp_width"]) for _ in range(shape["layers"])
        )
        self.transform, self.transform_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(shape["vocab"]))

    def forward(self, tokens: Tensor, targets: Tensor, places: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]] + self.segment.weight[0]
        x = self.norm(x)
        for block in self.blocks:
            x = block(x)
        x = self.transform_norm(F.gelu(self.transform(x.flatten(0, 1)[places])))
        return F.cross_entropy(F.linear(x, self.embedding.weight, self.bias).float(), targets)


def run(shape: dict[str, Any], scenario: str, turns: Turns) -> None:
    """Train until told to stop."""
    causal = scenario == "causal"
    torch.manual_seed(0)
    model = (Llama if causal else Bert)(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == shape["parameters"]
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = random_tokens(shape["vocab"], shape["batch"], shape["length"] + causal)
    hidden = None if causal else hidden_tokens(tokens)
    compiled = torch.compile(model)
    step = 0
    while True:
        turns.step()
        ids, places = tokens[step % len(tokens)], None
        if hidden is None:
            inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].flatten()
        else:
            mask = hidden[step % len(tokens)]
            places = mask.flatten().nonzero()[:, 0]
            inputs, targets = ids.masked_fill(mask, MASK_ID), ids.flatten()[places]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=shape["bf16"]):
            loss = compiled(inputs, targets, places)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        step += 1
