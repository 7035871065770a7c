"""Muon: momentum whose update is orthogonalised, for the matrices inside a transformer's blocks.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; scaled to the size of AdamW's updates as
in Liu et al. 2025, "Muon is scalable for LLM training"; rows of even sizes as in Li et al. 2025, "NorMuon".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from llmkit.train.optimizers.rounding import local
from llmkit.train.optimizers.update_rule import PLAIN, Keeping, UpdateRule
from llmkit.train.parallel.matrices import Matrices, matrices_like

# Polar Express (Amsel et al. 2025): for each step the odd quintic that is best for the interval which the step before
# it leaves of the singular values, starting from [1e-3, 1].
COEFFICIENTS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# The polynomials rise steeply right above their intervals: each but the last is made for values 2% larger than those
# expected, so that the rounding of bfloat16 carries none over the edge.
SAFETY = 1.02
RMS_OF_ADAMW = 0.2


def orthogonalize(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The nearest semi-orthogonal matrix of each: U V^T of its singular value decomposition U S V^T, approximately.

    Args:
        matrices: [..., rows, columns].
        dtype: dtype to compute in; by default that of the matrices.

    Returns:
        the same shape, in the dtype computed in. Singular values above a thousandth of the Frobenius norm come to
        within a fifth of 1; those far below stay smaller.
    """
    x = matrices.reshape(-1, *matrices.shape[-2:]).to(dtype or matrices.dtype)
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    size = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    x = x / (size * SAFETY + 1e-12).to(x.dtype)
    for step, (linear, cubic, quintic) in enumerate(COEFFICIENTS):
        margin = SAFETY if step < len(COEFFICIENTS) - 1 else 1.0
        gram = x @ x.mT
        even = torch.baddbmm(gram, gram, gram, beta=cubic / margin**3, alpha=quintic / margin**5)
        x = torch.baddbmm(x, even, x, beta=linear / margin)
    return (x if wide else x.mT).reshape(matrices.shape)


class Muon(UpdateRule):
    """Nesterov momentum, orthogonalised, with decoupled weight decay.

    For a matrix W of r rows and c columns with gradient G: M <- momentum M + (1 - momentum) G;
    D = (1 - momentum) G + momentum M; W <- (1 - lr weight_decay) W - lr 0.2 sqrt(max(r, c)) UV^T(D).

    Args:
        params: matrices, or stacks of matrices, [..., r, c], each of which is treated alone.
        lr: learning rate.
        momentum: decay of the momentum.
        weight_decay: decoupled weight decay.
        row_decay: NorMuon: the decay of an average v of each row's mean square of U V^T; the update is U V^T / sqrt(v),
            scaled to the norm that Muon's has on average. None: Muon.
        dtype: dtype of the orthogonalisation; by default that of the matrices.
        keeping: how weights and state are kept.
    """

    whole = True

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        row_decay: float | None = None,
        dtype: torch.dtype | None = None,
        keeping: Keeping = PLAIN,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}, keeping)
        self.row_decay, self.dtype = row_decay, dtype

    def batches(self, members: list[int], parameters: list[Tensor]) -> Iterator[list[int]]:
        """Matrices of one shape, divided in one way among ranks, which are orthogonalised together."""
        alike: dict[tuple[torch.Size, object], list[int]] = {}
        for member in members:
            parameter = parameters[member]
            alike.setdefault((parameter.shape, getattr(parameter, "placements", None)), []).append(member)
        yield from alike.values()

    def new_state(self, parameter: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The momentum, and the averages of the rows."""
        state = {"momentum": torch.zeros_like(parameter, dtype=dtype)}
        if self.row_decay is not None:
            state["rows"] = torch.zeros_like(parameter[..., 0], dtype=torch.promote_types(dtype, torch.float32))
        return state

    def update(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]]
    ) -> None:
        """One step of matrices of one shape."""
        matrices, shape = matrices_like(weights[0]), weights[0].shape
        weights, gradients = [local(weight) for weight in weights], [local(gradient) for gradient in gradients]
        averages = [local(state["momentum"]) for state in states]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, averages, group["momentum"])
        updates = matrices.apply(directions, lambda whole: orthogonalize(whole, self.dtype).to(weights[0].dtype))
        if self.row_decay is not None:
            updates = _evened(updates, [local(state["rows"]) for state in states], self.row_decay, matrices, shape)
        size = RMS_OF_ADAMW * max(shape[-2:]) ** 0.5
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, list(updates.unbind()), alpha=-group["lr"] * size)


def _evened(updates: Tensor, averages: list[Tensor], decay: float, matrices: Matrices, shape: torch.Size) -> Tensor:
    """Updates whose rows have like sizes over time, [matrices, rows, columns]; their norm is that of U V^T.

    Args:
        updates: this rank's parts.
        averages: of the mean square of each row, changed in place.
        decay: of the averages.
        matrices: how they are kept.
        shape: of a whole one.
    """
    squares = matrices.row_means(updates.square())
    torch._foreach_lerp_(averages, list(squares.unbind()), 1 - decay)
    evened = updates / (torch.stack(averages).sqrt() + 1e-10).unsqueeze(-1)
    # An orthogonal matrix of these dimensions has this norm.
    norm = min(shape[-2:]) ** 0.5
    scaled: Tensor = evened * (norm / matrices.norms(evened).clamp(min=1e-10))
    return scaled
