"""The form that a model takes to write: the same modules, in few and wide operations.

One new token of each of a few sequences costs a pass over all weights and, beside that, what it takes to start each
operation. So here projections of the same input become one product, activations and residual sums ride on the
products that they follow, rotations come from a table, and on a CPU in bf16 weights are laid out once in the order in
which the kernels read them (`packed` or `halves`), rather than at each product. Where a part has no such form (a linear
map that is quantized or carries an adapter, an MLP of experts), its module is called.

A form is made from the weights of the moment; `is_current` says whether they are still those.

Shapes: T tokens, N prompts, L tokens of a chunk, B sequences at work, W width, H heads, K key/value heads, D width of
one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.model.attention import Attention, Visibility, attend
from llmkit.model.cache import BLOCK, Decode, LayerDecode, Prefill, rounded
from llmkit.model.compiled import Compiler
from llmkit.model.heads import CausalLMHead
from llmkit.model.layers import ACTIVATIONS, MLP
from llmkit.model.projection import Layout, Precision, Projection, is_plain
from llmkit.model.rotary import Rotary, rotate
from llmkit.model.transformer import Block, Transformer

# What oneDNN calls the activations that it computes along with a product.
_POST_OPERATIONS = {
    ACTIVATIONS["silu"]: ("swish", ""),
    ACTIVATIONS["gelu"]: ("gelu", "none"),
    ACTIVATIONS["gelu_tanh"]: ("gelu", "tanh"),
    ACTIVATIONS["relu"]: ("relu", ""),
}
# Spans of explicit scores grow by so many places, as those of the cache do; so many rows are computed at once.
_STEP = 64
_ROWS = 256


class FusedMLP:
    """An MLP: [T, W] to [T, W]."""

    def __init__(self, mlp: nn.Module, precision: Precision) -> None:
        self.mlp, self.precision = mlp, precision
        self.apart = _apart() if precision.layout == "rows" else FusedMLP.call_module
        self.down: Projection | None = None
        if type(mlp) is not MLP or precision.layout == "modules" or mlp.activation not in _POST_OPERATIONS:
            return
        linears = [linear for linear in (mlp.gate, mlp.up, mlp.down) if linear is not None]
        inner, down = Projection(linears[:-1], precision), Projection(linears[-1:], precision)
        if all(is_plain(linear) for linear in linears) or (inner.joined is not None and down.joined is not None):
            self.activation, self.gated = mlp.activation, mlp.gate is not None
            self.inner, self.down = inner, down

    def __call__(self, x: Tensor) -> Tensor:
        """down(activation(gate(x)) * up(x)), or without a gate."""
        if self.down is not None:
            return self.down(self._inner(x))
        return self.apart(self, x)

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + MLP."""
        if self.down is not None:
            return self.down.added_to(residual, self._inner(x))
        return residual + self.apart(self, x)

    def _inner(self, x: Tensor) -> Tensor:
        if not self.gated:
            if self.inner.packed is not None:
                return self.inner(x, _POST_OPERATIONS[self.activation])
            return self.activation(self.inner(x))
        gate, up = self.inner(x).chunk(2, dim=-1)
        return self.activation(gate).mul_(up)

    def call_module(self, x: Tensor) -> Tensor:
        """The module's result."""
        # Modules of experts want a batch of sequences.
        return self.precision.call(self.mlp, x[None])[0]


@cache
def _apart() -> Callable[[FusedMLP, Tensor], Tensor]:
    """`call_module` as it is, within compiled code: experts' sizes change with every token.

    One for all blocks, else none could use what was compiled for another.
    """
    return torch.compiler.disable(FusedMLP.call_module)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Chunk:
    """What a pass over a part of the prompts needs: N prompts, L tokens each.

    Attributes:
        shape: N and L.
        passing: the cache.
        start: the position of the first token.
        rotations: cosines and sines of layers that see everything, and of local ones; None without rotary positions.
    """

    shape: tuple[int, int]
    passing: Prefill
    start: int
    rotations: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None


@dataclass(frozen=True)
class Step:
    """What a layer's pass over one token of each sequence needs.

    Attributes:
        passing: the layer's cache.
        rotation: cosines and signed sines, [B, 1, rotated width]; None without rotary positions.
    """

    passing: LayerDecode
    rotation: tuple[Tensor, Tensor] | None


class FusedAttention:
    """Attention of one layer; `mix` gives what its output projection takes, [T, H x D]."""

    def __init__(self, attention: Attention, window: int | None, precision: Precision) -> None:
        self.attention, self.precision = attention, precision
        self.layer, self.width, self.window = attention.layer, attention.head_width, window
        self.inputs = Projection([attention.query, attention.key, attention.value], precision)
        self.output = Projection([attention.output], precision)
        self.heads = attention.query.out_features // self.width
        self.kv_heads = attention.key.out_features // self.width
        self.scoring = attention.scoring()
        found = (_norm(attention.query_norm, precision), _norm(attention.key_norm, precision))
        self.norms = [norm for norm in found if norm is not None]
        self.explicit = attention.query.device.type == "cpu" and precision.inputs == torch.bfloat16

    def mix(self, x: Tensor, how: Chunk | Step) -> Tensor:
        """[T, W] to [T, H x D]: everything but the output projection."""
        projected = self.inputs(x)
        if self.norms:
            projected = self._normalised(projected)
        return self._chunk(projected, how) if isinstance(how, Chunk) else self._step(projected, how)

    def _normalised(self, projected: Tensor) -> Tensor:
        attention, queries, keys = self.attention, self.heads * self.width, self.kv_heads * self.width
        query, key, value = projected.split((queries, keys, keys), dim=-1)
        if attention.norms_heads:
            query, key = query.unflatten(-1, (-1, self.width)), key.unflatten(-1, (-1, self.width))
        query, key = self.norms[0](query).flatten(1), self.norms[1](key).flatten(1)
        return torch.cat((query.to(value.dtype), key.to(value.dtype), value), dim=-1)

    def _step(self, projected: Tensor, step: Step) -> Tensor:
        passing, (batch, kv_heads, width) = step.passing, (len(projected), self.kv_heads, self.width)
        heads = projected.view(batch, -1, width).float()
        if step.rotation is not None:
            cosine, sine = step.rotation
            turned = heads[:, : self.heads + kv_heads, : cosine.shape[-1]]
            rolled = turned.roll(cosine.shape[-1] // 2, -1)
            turned.mul_(cosine).addcmul_(rolled, sine)
        keys, values = passing.extend(heads[:, self.heads :])
        query = heads[:, : self.heads].to(passing.dtype).reshape(batch * kv_heads, -1, width)
        scoring = self.scoring
        if scoring.softcap is not None:
            raw = torch.bmm(query, keys.transpose(1, 2)).mul_(scoring.scale / scoring.softcap)
            scores = raw.tanh_().mul_(scoring.softcap).add_(passing.mask)
        elif torch.compiler.is_compiling():
            # What is beside the product goes into the code of the softmax.
            scores = torch.bmm(query, keys.transpose(1, 2)) * scoring.scale + passing.mask
        else:
            scores = torch.baddbmm(passing.mask, query, keys.transpose(1, 2), alpha=scoring.scale)
        if scoring.sinks is not None:
            sinks = scoring.sinks.to(scores.dtype).view(1, kv_heads, -1, 1).expand(batch, -1, -1, -1)
            scores = torch.cat((scores, sinks.reshape(batch * kv_heads, -1, 1)), dim=-1)
        shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
        if scoring.sinks is not None:
            shares = shares[..., :-1]
        return torch.bmm(shares, values).view(batch, -1).to(self.precision.dtype)

    def _chunk(self, projected: Tensor, chunk: Chunk) -> Tensor:
        heads = projected.view(*chunk.shape, -1, self.width)
        query, key, value = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        if chunk.rotations is not None:
            rotation = chunk.rotations[self.window is not None]
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        # Rounded before they are attended to: where a chunk ends is to make no difference.
        kept = self.precision.kept
        key, value = key.to(kept).to(key.dtype), value.to(kept).to(value.dtype)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        key, value, first = chunk.passing.extend(self.layer, key, value)
        mixed = self._attend(query, key, value, chunk.start, first)
        return mixed.transpose(1, 2).reshape(len(projected), -1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, start: int, first: int) -> Tensor:
        """Attention of tokens from position `start` on over keys from position `first` on."""
        length, span, device = query.shape[2], key.shape[2], query.device
        if self.explicit:
            return self._attend_explicitly(query, key, value, start, first)
        if start == 0:
            return attend(query, key, value, Visibility(True, window=self.window), self.scoring)
        rows, columns = torch.arange(start, start + length, device=device)[:, None], torch.arange(span, device=device)
        mask = columns + first <= rows
        if self.window is not None:
            mask = mask & (columns + first > rows - self.window)
        return attend(query, key, value, Visibility(False, mask=mask), self.scoring)

    def _attend_explicitly(self, query: Tensor, key: Tensor, value: Tensor, start: int, first: int) -> Tensor:
        """The same by whole scores of some rows at a time, each over the keys up to its own."""
        scoring, (count, heads, whole, width), kv_heads = self.scoring, query.shape, self.kv_heads
        # Sums over keys begin at a block's first position; and MKL sums otherwise for fewer than four rows.
        before, step = first % BLOCK, math.lcm(_STEP, BLOCK)
        offset, length = start - first + before, max(whole, 4) if query.dtype == torch.float32 else whole
        key, value = (F.pad(tensor, (0, 0, before, 2 * step)) for tensor in (key, value))
        query = F.pad(query * scoring.scale, (0, 0, 0, length - whole))
        mixed = []
        for begin in range(0, length, _ROWS):
            rows = query[:, :, begin : begin + _ROWS]
            low = 0 if self.window is None else max(0, offset + begin - self.window + 1) // step * step
            high = low + rounded(offset + begin + rows.shape[2] - low, _STEP)
            keys, values = key[:, :, low:high], value[:, :, low:high]
            scores = torch.matmul(rows.reshape(count, kv_heads, -1, width), keys.transpose(2, 3))
            scores = scores.view(count, heads, -1, high - low)
            if scoring.softcap is not None:
                scores = scores.div_(scoring.softcap).tanh_().mul_(scoring.softcap)
            places = torch.arange(offset + begin - low, offset + begin - low + rows.shape[2])[:, None]
            columns = torch.arange(high - low)
            hidden = columns > places
            # All rows see what comes before the first of them.
            diagonal = offset + begin - low if self.window is None else 0
            if self.window is not None:
                hidden |= columns <= places - self.window
            scores[..., diagonal:].masked_fill_(hidden[:, diagonal:], torch.finfo(scores.dtype).min)
            if scoring.sinks is not None:
                sinks = scoring.sinks.to(scores.dtype)[:, None, None].expand(count, heads, rows.shape[2], 1)
                scores = torch.cat((scores, sinks), dim=-1)
            shares = torch.softmax(scores, dim=-1)[..., : high - low].reshape(count, kv_heads, -1, high - low)
            mixed.append(torch.matmul(shares, values).view(count, heads, -1, width))
        return (mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2))[:, :, :whole]


class FusedBlock:
    """A block; see `llmkit.model.transformer.Block`."""

    def __init__(self, block: Block, window: int | None, precision: Precision) -> None:
        self.dtype, self.after_sum, self.parallel = precision.dtype, block.after_sum, block.parallel
        self.attention = FusedAttention(block.attention, window, precision)
        self.mlp = FusedMLP(block.mlp, precision)
        self.norms = [
            _norm(norm, precision)
            for norm in (block.attention_norm, block.attention_output_norm, block.mlp_norm, block.mlp_output_norm)
        ]

    def __call__(self, x: Tensor, how: Chunk | Step) -> Tensor:
        """[T, W] to [T, W]."""
        before, after, mlp_before, mlp_after = self.norms
        attention, mlp, dtype = self.attention, self.mlp, self.dtype
        if self.after_sum:
            assert before is not None
            assert mlp_before is not None
            x = before(attention.output.added_to(x, attention.mix(x.to(dtype), how)))
            return mlp_before(mlp.added_to(x, x.to(dtype)))
        normed = x if before is None else before(x)
        mixed = attention.mix(normed.to(dtype), how)
        attended = attention.output.added_to(x, mixed) if after is None else x + after(attention.output(mixed))
        read = x if self.parallel else attended
        normed = (read if mlp_before is None else mlp_before(read)).to(dtype)
        return mlp.added_to(attended, normed) if mlp_after is None else attended + mlp_after(mlp(normed))


def _norm(norm: nn.Module | None, precision: Precision) -> Callable[[Tensor], Tensor] | None:
    """A norm's form. On a CPU there is no kernel for RMSNorm, and as a module it takes ten operations. Here it takes
    four, by the root of the sum of squares: sqrt(mean + eps) is hypot(root, sqrt(W eps)) / sqrt(W)."""
    if norm is None:
        return None
    narrow = precision.exact or getattr(norm, "weight", None) is None or norm.weight.dtype == torch.bfloat16
    if type(norm) is not nn.RMSNorm or not narrow or norm.weight.device.type != "cpu":
        return partial(precision.call, norm) if precision.exact and not precision.autocast else norm
    width, eps = norm.weight.shape[0], norm.eps
    assert eps is not None
    weight, least = norm.weight.detach().float() * width**0.5, torch.tensor((width * eps) ** 0.5)

    def normed(x: Tensor) -> Tensor:
        wide = x.float()
        root = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).hypot_(least)
        scaled: Tensor = (wide / root).mul_(weight)
        return scaled.to(x.dtype)

    return normed


class FusedModel:
    """A causal language model in the form in which it writes; in evaluation mode and without gradients."""

    def __init__(self, model: Transformer, layout: Layout = "packed") -> None:
        self.model, self.layout = model, layout
        self.made_from = _fingerprint(model)
        self.precision = Precision.of(model, layout)
        config = model.config
        self.blocks = [
            FusedBlock(block, config.window if layer in config.local_layers else None, self.precision)
            for layer, block in enumerate(model.blocks)
            if isinstance(block, Block)
        ]
        self.norm = _norm(model.norm, self.precision)
        head = model.head
        assert isinstance(head, CausalLMHead)
        self.head, self.softcap = Projection([head.projection], self.precision), head.softcap
        self.device = model.device
        # Blocks share their code: the first one's compilation serves all that are made of the same parts.
        self.compiler = Compiler() if layout == "rows" else None
        self.tables: dict[bool, tuple[Tensor, Tensor]] = {}

    def is_current(self) -> bool:
        """Whether the model's weights, parts and precision are those that this form was made from."""
        known = self.made_from is not None and self.made_from == _fingerprint(self.model)
        return known and self.precision == Precision.of(self.model, self.layout)

    def prefill(self, input_ids_NL: Tensor, start: int, passing: Prefill) -> Tensor:
        """The body's output [N, L, W] for the prompts' tokens from position `start` on."""
        with self._weights_as_made():
            count, length = input_ids_NL.shape
            positions = torch.arange(start, start + length, device=self.device)
            rotations = None
            if self.model.rotary is not None:
                own = self.model.local_rotary or self.model.rotary
                lengths = passing.lengths[:count]
                rotation = self.model.rotary(positions, self.precision.dtype, lengths)
                local = rotation if own is self.model.rotary else own(positions, self.precision.dtype, lengths)
                rotations = rotation, local
            x_NLW = self._embedded(input_ids_NL, positions)
            x_TW, chunk = x_NLW.flatten(0, 1), Chunk((count, length), passing, start, rotations)
            for block in self.blocks:
                x_TW = block(x_TW, chunk)
            return self._normed(x_TW).view(count, length, -1)

    def decode(self, input_ids_B: Tensor, passing: Decode) -> Tensor:
        """The body's output [B, W] for one new token of each sequence at work."""
        with self._weights_as_made():
            positions = passing.positions
            x_BW = self._embedded(input_ids_B[:, None], positions[:, None])[:, 0]
            rotation = local = None
            if self.model.rotary is not None:
                own = self.model.local_rotary
                rotation = local = self._rotation(self.model.rotary, passing)
                local = rotation if own is None else self._rotation(own, passing)
            for layer, block in enumerate(self.blocks):
                step = Step(passing.layer(layer), rotation if block.attention.window is None else local)
                if self.compiler is None:
                    x_BW = block(x_BW, step)
                else:
                    step.passing.mark_lengths()
                    x_BW = self.compiler.call(FusedBlock.__call__, block, x_BW, step)
            return self._normed(x_BW)

    def logits(self, hidden: Tensor) -> Tensor:
        """[T, W] to fp32 [T, V]."""
        with self._weights_as_made():
            inputs = hidden.to(self.precision.dtype)
            project = (
                self.head if self.compiler is None else partial(self.compiler.call, Projection.__call__, self.head)
            )
            logits: Tensor = project(inputs).float()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def _embedded(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        embedded: Tensor = self.model.embeddings(input_ids, positions, None)
        return embedded.float() if self.precision.exact else embedded

    def _weights_as_made(self) -> torch.autocast:
        """Weights are cast when the form is made: autocast would only cast what is to stay in fp32."""
        return torch.autocast(self.device.type, enabled=False)

    def _normed(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)

    def _rotation(self, rotary: Rotary, passing: Decode) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines, for x * cosine + roll(x) * sine."""
        positions = passing.positions
        if rotary.by_length is not None:
            cosine, sine = (part[:, 0] for part in rotary(positions[:, None], torch.float32, positions + 1))
            return torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1)
        known = self.tables.get(rotary.local)
        if known is None or len(known[0]) < passing.cache.places:
            cosine, sine = rotary(torch.arange(passing.cache.places, device=self.device), torch.float32)
            known = torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1)
            self.tables[rotary.local] = known
        return known[0][positions], known[1][positions]


def _fingerprint(model: Transformer) -> tuple[object, ...] | None:
    """What changes with the weights and the parts; None where changes leave no trace."""
    parts: list[object] = [(type(module), getattr(module, "adapter", None) is None) for module in model.modules()]
    for parameter in model.parameters():
        if parameter.is_inference():
            return None
        parts.append((id(parameter), parameter.data_ptr(), parameter._version, parameter.dtype))
    return tuple(parts)
