"""What the loop asks of a method: an objective says what is minimised, a batch source says on what.

The gradient of one optimizer step is the gradient of the sum of `LossOutput.sum` over the step's micro-batches, divided
by the sum of their `LossOutput.weight`. So it does not depend on how the step's batch is cut into micro-batches, nor
(once ranks are added up too) on how many machines share it. An objective therefore never averages by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

Number = Tensor | float
State = Mapping[str, Any]
"""Tensors and JSON values by name; a checkpoint keeps both exactly."""


@dataclass(frozen=True)
class Part:
    """Which rows of each step's batch a rank goes through; the batch itself does not depend on the number of ranks.

    Args:
        index: number of the part.
        count: parts.
    """

    index: int = 0
    count: int = 1

    def rows(self, rows: int) -> slice:
        """This part of a batch's rows: contiguous ones, divided as evenly as they can be."""
        return slice(rows * self.index // self.count, rows * (self.index + 1) // self.count)

    def smallest(self, rows: int) -> int:
        """Rows of the smallest part, from which every rank reckons the same number of micro-batches."""
        return rows // self.count


WHOLE = Part()
"""All rows: where there is one rank."""


class LossOutput(NamedTuple):
    """Loss of one micro-batch.

    Args:
        sum: scalar that is differentiated: the loss added up over its units (tokens, pairs, sequences).
        weight: number of units added up.
        metrics: further values by name, each as (sum, weight); what is shown is sum of sums over sum of weights. One
            named `loss` is shown in place of `sum`, which then holds terms beside the loss itself.
        tokens: tokens that went through the model (padding left out), from which throughput and FLOPs are reckoned.
    """

    sum: Tensor
    weight: Number
    metrics: Mapping[str, tuple[Number, Number]] = {}
    tokens: int = 0


class Objective(Protocol):
    """What is minimised."""

    def loss(self, model: nn.Module, batch: Any) -> LossOutput:
        """Loss of one micro-batch, in training mode and under the loop's precision.

        Moving the batch to the model's device is up to the objective (or the source).
        """


class BatchSource(Protocol):
    """Where the batches of each optimizer step come from.

    On many ranks each has a source of its own, which gives the rank's part of every batch (`Part`) in as many
    micro-batches as the others'.

    Before each step the loop seeds the global random generators of torch, Python and NumPy from the stage's seed and
    the step, so what `batches` draws from them is the same after a resume. A source that reads a data set is a pure
    function of its seed and the step and has an empty state. One that makes its own data (rollouts) gets the model when
    it is built, puts it into evaluation mode while it generates, and keeps cursor and current rollouts in its state.
    """

    def batches(self, step: int) -> Sequence[Any]:
        """The micro-batches of an optimizer step; steps count from 0 and are asked for once each, in order."""

    def state_dict(self) -> State:
        """Everything that `batches` of the steps to come depends on, beside the seed and the model."""

    def load_state_dict(self, state: State) -> None:
        """Go on from a state."""


class StatelessSource:
    """Base of sources that are pure functions of their seed and the step."""

    def state_dict(self) -> State:
        """Nothing."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Nothing to go on from."""
