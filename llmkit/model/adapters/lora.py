"""The low-rank adapter of one linear map: LoRA (Hu et al. 2021) and DoRA (Liu et al. 2024)."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.model.adapters.config import Initialization
from llmkit.model.layers import Linear


class LowRank(nn.Module):
    """x to W x + b + scale x B A x, in float32 whatever the base is kept in.

    Attributes:
        a: [rank, inputs]; maps that the reference keeps stacked in one share it, as the reference's adapter does.
        b: [outputs, rank], zero at first.
        alpha, scale: what B A counts, see `AdapterConfig.kind`.
        dropout: share of the inputs of A dropped in training.
        enabled: whether the adapter counts at all.
    """

    def __init__(self, linear: Linear, a: nn.Parameter, *, alpha: float, scale: float, dropout: float) -> None:
        super().__init__()
        self.a = a
        self.b = nn.Parameter(torch.zeros(linear.out_features, a.shape[0], dtype=a.dtype, device=a.device))
        self.alpha, self.scale, self.dropout = alpha, scale, dropout
        self.enabled = True

    @property
    def rank(self) -> int:
        """Rows of A."""
        return int(self.a.shape[0])

    def forward(self, linear: Linear, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        base = linear.project(x)
        if not self.enabled:
            return base
        return torch.add(base, self.change(self.dropped(x)), alpha=self.scale).to(base.dtype)

    def dropped(self, x: Tensor) -> Tensor:
        """What A sees of the inputs."""
        return F.dropout(x, self.dropout) if self.training and self.dropout > 0 else x

    def change(self, x: Tensor) -> Tensor:
        """B A x, without the scale."""
        # Autocast brings all three to one dtype; without it the base may be in a lower one than the adapter.
        same = x if torch.is_autocast_enabled(x.device.type) else x.to(self.a.dtype)
        return F.linear(F.linear(same, self.a), self.b)

    @torch.no_grad()
    def merged_weight(self, linear: Linear) -> Tensor:
        """The weight [outputs, inputs] of the one map that does what base and adapter do together, in float32."""
        return linear.dense_weight().to(self.a.dtype) + self.scale * (self.b @ self.a)


class MagnitudeLowRank(LowRank):
    """DoRA: each row of W + scale x B A brought to a length of its own (Liu et al. 2024, equation 5).

    The length that is divided by gets no gradient (section 4.3). It is not made from the sum of both matrices, which
    would have to be there in whole, but from their products: |w + s b A|^2 = |w|^2 + 2 s b (A w) + s^2 b (A A') b'.

    Attributes:
        magnitude: [outputs], the rows' lengths; those of W at first.
    """

    base_squares: Tensor

    def __init__(self, linear: Linear, a: nn.Parameter, *, alpha: float, scale: float, dropout: float) -> None:
        super().__init__(linear, a, alpha=alpha, scale=scale, dropout=dropout)
        weight = linear.dense_weight().detach().to(a.dtype)
        self.register_buffer("base_squares", weight.square().sum(1), persistent=False)
        self.magnitude = nn.Parameter(self.base_squares.sqrt())
        self._kept: tuple[tuple[int, ...], Tensor] | None = None

    def forward(self, linear: Linear, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        base = linear.project(x)
        if not self.enabled:
            return base
        seen = self.dropped(x)
        direct = base if seen is x else linear.project(seen)
        if linear.bias is not None:
            direct = direct - linear.bias
        ratio = self.magnitude / self.lengths(linear)
        return (base + (ratio - 1) * direct + ratio * self.scale * self.change(seen)).to(base.dtype)

    def lengths(self, linear: Linear) -> Tensor:
        """[outputs], the lengths of the rows of W + scale x B A, without gradients.

        Between passes without gradients they are kept while A and B stay as they are. Fused optimizers change
        parameters without counting it as a version, but only after a pass with gradients, which forgets them.
        """
        if torch.is_grad_enabled():
            self._kept = None
            return self._row_lengths(linear)
        mark = tuple(number for part in (self.a, self.b) for number in (part._version, part.data_ptr()))
        if self._kept is None or self._kept[0] != mark:
            self._kept = (mark, self._row_lengths(linear))
        return self._kept[1]

    @torch.no_grad()
    def _row_lengths(self, linear: Linear) -> Tensor:
        with torch.autocast(self.a.device.type, enabled=False):
            crossed = linear.dense_weight().to(self.a.dtype) @ self.a.t()
            squares = self.base_squares + 2 * self.scale * (crossed * self.b).sum(1)
            squares += self.scale**2 * ((self.b @ (self.a @ self.a.t())) * self.b).sum(1)
        return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()

    @torch.no_grad()
    def merged_weight(self, linear: Linear) -> Tensor:
        """As for LoRA, with the rows brought to their lengths."""
        return (self.magnitude / self.lengths(linear))[:, None] * super().merged_weight(linear)


def initial_a(shape: tuple[int, int], initialization: Initialization, seed: int, name: str) -> Tensor:
    """A [rank, inputs] as it begins, in float32 on the CPU: a function of seed and name alone."""
    rank, inputs = shape
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    empty = torch.empty(shape, dtype=torch.float32)
    if initialization == "gaussian":
        return empty.normal_(0.0, 1 / rank, generator=generator)
    return empty.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
