"""What a checkpoint captures of a training, and how a training goes on from one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from llmkit.console import say
from llmkit.errors import LLMKitError
from llmkit.train.checkpoint import Checkpoints
from llmkit.train.contract import BatchSource
from llmkit.train.metrics import Window
from llmkit.train.optimizer import Named
from llmkit.train.progress import Recorder, Totals
from llmkit.train.state import load_optimizers, load_weights, optimizer_tensors, split_state, weight_tensors


class Snapshots:
    """Saves and restores everything that the steps to come depend on.

    Args:
        checkpoints: the run's.
        model: what is trained.
        parameters: the trained ones.
        optimizers: of these.
        source: of the batches.
        recorder: of the numbers.
        write_model: writes the `model/` of a checkpoint.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        model: nn.Module,
        parameters: Named,
        optimizers: Sequence[Optimizer],
        source: BatchSource,
        recorder: Recorder,
        write_model: Callable[[Path], None],
    ) -> None:
        self.checkpoints, self.model, self.source = checkpoints, model, source
        self.parameters, self.optimizers = parameters, optimizers
        self.recorder, self.write_model = recorder, write_model

    def save(self, done: int) -> None:
        """Write a checkpoint of the state after `done` steps."""
        self.recorder.metrics.sync()
        source_tensors, source_values = split_state(self.source.state_dict())
        totals = self.recorder.totals
        self.checkpoints.save(
            done,
            self.write_model,
            {
                "weights": weight_tensors(self.model),
                "optimizer": optimizer_tensors(self.parameters, self.optimizers),
                "source": source_tensors,
            },
            {
                "tokens": totals.tokens,
                "seconds": totals.seconds,
                "last": totals.last,
                "window": self.recorder.window.totals(),
                "source": source_values,
                "guard": self.recorder.guard.state_dict(),
            },
        )

    def rewind(self, name: str) -> int:
        """Go back, in the middle of a training, to what `restore` would find after a restart; returns its step.

        Raises:
            LLMKitError: no checkpoint is left to go back to.
        """
        seconds = self.recorder.totals.seconds
        step = self.restore(name)
        if step is None:
            raise LLMKitError(
                "training has to go back to a checkpoint from before its bad steps, and none is whole.",
                where=str(self.checkpoints.directory),
                hint="The same command starts over and passes over the bad steps.",
            )
        # What was given up took its time too.
        self.recorder.totals.seconds = seconds
        return step

    def restore(self, name: str) -> int | None:
        """Load the newest whole checkpoint that no rewind has given up; returns its step, or None where there is none.

        Args:
            name: of the stage, for the message.
        """
        guard = self.recorder.guard
        found = self.checkpoints.newest(lambda step, state: guard.belongs(step, state["guard"]))
        if found is None:
            return None
        guard.load_state_dict(found.state["guard"])
        load_weights(self.model, found.tensors("weights"))
        load_optimizers(self.parameters, self.optimizers, found.tensors("optimizer"))
        self.source.load_state_dict({**found.state["source"], **found.tensors("source")})
        self.recorder.totals = Totals(found.state["tokens"], found.state["seconds"], dict(found.state["last"]))
        self.recorder.window = Window(found.state["window"])
        say(f"{name}: going on from the checkpoint of step {found.step:,}")
        return found.step
