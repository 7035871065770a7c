"""What a checkpoint captures of a training, and how a training goes on from one.

Random generators are not captured: they are seeded from the stage's seed and the step before they are drawn from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmkit.console import say
from llmkit.errors import ArtifactError, LLMKitError
from llmkit.train.checkpoints.checkpoint import Checkpoint, Checkpoints, Contents
from llmkit.train.checkpoints.state import (
    load_numbers,
    make_state,
    optimizer_numbers,
    optimizer_tensors,
    split_state,
    weight_tensors,
)
from llmkit.train.checkpoints.twin import Twin
from llmkit.train.contract import BatchSource
from llmkit.train.metrics import FILE, Window
from llmkit.train.optimizers.build import Named
from llmkit.train.optimizers.update_rule import UpdateRule
from llmkit.train.progress import Recorder, Totals
from llmkit.train.trackers import WANDB_ID

SaveModel = Callable[[nn.Module, Path], None]
"""Writes a model as a directory, to a path that does not exist yet."""

_WEIGHTS, _OPTIMIZER, _SOURCE, _AVERAGE = "weights.", "optimizer.", "source", "evaluated."


class Snapshots:
    """Saves and restores everything that the steps to come depend on.

    Args:
        checkpoints: the run's.
        model: what is trained.
        parameters: the trained ones.
        optimizers: of these.
        source: of the batches.
        recorder: of the numbers.
        save_model: writes the `model/` of a checkpoint.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        model: nn.Module,
        parameters: Named,
        optimizers: Sequence[Optimizer],
        source: BatchSource,
        recorder: Recorder,
        save_model: SaveModel,
    ) -> None:
        self.checkpoints, self.model, self.source = checkpoints, model, source
        self.parameters, self.optimizers = parameters, optimizers
        self.recorder, self.save_model = recorder, save_model
        self.world = checkpoints.world

    def save(self, done: int, measures: Mapping[str, float] | None = None, *, wait: bool = True) -> None:
        """Write a checkpoint of the state after `done` steps; to call on all ranks.

        Args:
            done: steps.
            measures: what validation said of these very weights.
            wait: return when it is written, and not while it still is.

        Raises:
            LLMKitError: this one, or the one before, cannot be written.
        """
        recorder, totals = self.recorder, self.recorder.totals
        recorder.metrics.sync()
        weights = weight_tensors(self.model)
        tensors = {_WEIGHTS + name: tensor for name, tensor in weights.items()}
        moments = optimizer_tensors(self.parameters, self.optimizers)
        tensors |= {_OPTIMIZER + label: tensor for label, tensor in moments.items()}
        source_tensors, source_values = split_state(self.source.state_dict())
        tensors |= {f"{_SOURCE}.{self.world.data_rank}.{name}": value for name, value in source_tensors.items()}
        saved_as = self._evaluated(weights, tensors)
        state = {
            "tokens": totals.tokens,
            "seconds": totals.seconds,
            "last": totals.last,
            "windows": self.world.collect(recorder.window.totals()),
            "sources": self.world.collect(source_values),
            "data_ranks": self.world.data_ranks,
            "optimizers": optimizer_numbers(self.parameters, self.optimizers),
            "guard": recorder.guard.state_dict(),
        }
        twin = Twin(self.model) if self.world.is_main else None

        def write_model(path: Path, whole: Callable[[list[str]], Mapping[str, Tensor]]) -> None:
            assert twin is not None
            values = whole(list(saved_as.values()))
            self.save_model(twin.filled({name: values[key] for name, key in saved_as.items()}), path)

        # A copy: it is written while training goes on and changes what is counted.
        contents = Contents(tensors, deepcopy(state), measures or {}, self._logs(), write_model)
        self.checkpoints.save(done, contents, wait=wait)

    def _evaluated(self, weights: Mapping[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, str]:
        """Which tensor of the checkpoint each weight is used with; those that none of them holds are added."""
        places = {id(tensor): key for key, tensor in tensors.items()}
        names = {id(tensor): name for name, tensor in weights.items()}
        chosen = {name: _WEIGHTS + name for name in weights}
        for optimizer in self.optimizers:
            for parameter in (each for group in optimizer.param_groups for each in group["params"]):
                point = optimizer.evaluation_point(parameter) if isinstance(optimizer, UpdateRule) else None
                if point is not None:
                    name = names[id(parameter)]
                    chosen[name] = places.get(id(point), _AVERAGE + name)
                    tensors.setdefault(chosen[name], point)
        return chosen

    def _logs(self) -> dict[str, str]:
        """Lines and names that a run goes on with where its folder is lost and its checkpoints are elsewhere."""
        if not self.world.is_main or self.checkpoints.settings.directory is None:
            return {}
        files = [self.recorder.context.directory / name for name in (FILE, WANDB_ID)]
        return {file.name: file.read_text(encoding="utf-8") for file in files if file.is_file()}

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
                where=str(self.checkpoints.folder),
                hint="The same command starts over and passes over the bad steps.",
            )
        # What was given up took its time too.
        self.recorder.totals.seconds = seconds
        return step

    def restore(self, name: str) -> int | None:
        """Load the newest whole checkpoint that no rewind has given up; returns its step, or None where there is none.

        To call on all ranks, whose number may be another than when it was saved.

        Args:
            name: of the stage, for the message.

        Raises:
            ArtifactError: it is of another model, or its source cannot go on on this number of ranks.
        """
        guard = self.recorder.guard
        found = self.checkpoints.newest(lambda step, state: guard.belongs(step, state["guard"]))
        if found is None:
            return None
        state = found.state
        guard.load_state_dict(state["guard"])
        self._load_tensors(found)
        self.recorder.totals = Totals(state["tokens"], state["seconds"], dict(state["last"]))
        self.recorder.window = self._window(state["windows"])
        self._restore_logs(found)
        if self.world.is_main:
            say(f"{name}: going on from the checkpoint of step {found.step:,}")
        return found.step

    def _load_tensors(self, found: Checkpoint) -> None:
        stored = found.reader().tensors
        saved = {key.removeprefix(_OPTIMIZER) for key in stored if key.startswith(_OPTIMIZER)}
        make_state(self.parameters, self.optimizers)
        load_numbers(self.parameters, self.optimizers, found.state["optimizers"], saved)
        tensors = {_WEIGHTS + name: tensor for name, tensor in weight_tensors(self.model).items()}
        moments = optimizer_tensors(self.parameters, self.optimizers)
        tensors |= {_OPTIMIZER + label: tensor for label, tensor in moments.items()}
        wanted = {key: (tensor.shape, tensor.dtype) for key, tensor in tensors.items()}
        there = {
            key: (each.size, each.properties.dtype)
            for key, each in stored.items()
            if key.startswith((_WEIGHTS, _OPTIMIZER))
        }
        if wanted != there:
            raise ArtifactError(
                "the checkpoint's weights or optimizer state are not those of this model.",
                where=str(found.folder),
                hint="Remove the stage's unfinished folder so that it starts over.",
            )
        own = f"{_SOURCE}.{self.world.data_rank}."
        source = {
            key: torch.empty(each.size, dtype=each.properties.dtype)
            for key, each in stored.items()
            if key.startswith(own)
        }
        values = self._source_values(found)
        with torch.no_grad():
            self.checkpoints.load(found, {**tensors, **source})
        self.source.load_state_dict({**values, **{key.removeprefix(own): value for key, value in source.items()}})

    def _source_values(self, found: Checkpoint) -> Mapping[str, Any]:
        """The JSON state of this rank's source."""
        sources, data_ranks = found.state["sources"], found.state["data_ranks"]
        if data_ranks == self.world.data_ranks and len(sources) == self.world.size:
            return dict(sources[self.world.rank])
        if any(sources) or any(key.startswith(_SOURCE + ".") for key in found.reader().tensors):
            raise ArtifactError(
                f"this training makes its own data, on {data_ranks} ranks until now, and cannot go on on "
                f"{self.world.data_ranks}.",
                where=str(found.folder),
                hint=f"Start it on as many ranks as before ({len(sources)}).",
            )
        return {}

    def _window(self, windows: Sequence[Mapping[str, list[float]]]) -> Window:
        """This rank's sums since the last line; on another number of ranks the first has them all."""
        if len(windows) == self.world.size:
            return Window(windows[self.world.rank])
        window = Window()
        if self.world.is_main:
            for name, (total, weight) in (pair for share in windows for pair in share.items()):
                window.add(name, total, weight)
        return window

    def _restore_logs(self, found: Checkpoint) -> None:
        if not self.world.is_main:
            return
        for name in (FILE, WANDB_ID):
            file, kept = self.recorder.context.directory / name, found.folder / "trainer"
            if not file.exists() and kept.size(name) is not None:
                file.write_bytes(kept.read(name))
