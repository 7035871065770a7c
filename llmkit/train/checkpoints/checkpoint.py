"""Checkpoints that are whole or absent, written while training goes on.

    checkpoints/step-00000400/
      trainer/          each rank's parts of weights, optimizer and source state as safetensors; what is where, and
                        numbers, as JSON
      model/            a Hugging Face directory, as the finished stage will have, or the adapter where one is trained
      manifest.json     every file with its sha256, written last: with it the checkpoint is there

`trainer/` holds every tensor that training changes, although `model/` holds most of them again: what a model directory
keeps (merged adapters, no value head, an average) is up to the stage, and going on from it would not be exact. That
costs a quarter more disk than AdamW's state and the model alone.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from llmkit.console import warn
from llmkit.errors import ArtifactError, ConfigError, LLMKitError
from llmkit.store.artifact import (
    MANIFEST,
    FileEntry,
    Manifest,
    content_digest,
    list_files,
    manifest_text,
    parse_manifest,
)
from llmkit.store.folders import Folder
from llmkit.store.stage import Context
from llmkit.store.workspace import versions
from llmkit.train.checkpoints.config import CheckpointsConfig
from llmkit.train.checkpoints.retention import best_step, kept_steps
from llmkit.train.checkpoints.staging import Staged, stage
from llmkit.train.checkpoints.storage import SafetensorsReader, SafetensorsWriter, StagedPlanner
from llmkit.train.checkpoints.tensor_file import HashedStream
from llmkit.train.checkpoints.verify import first_damage
from llmkit.train.config import TrainConfig
from llmkit.train.world import ALONE, World

_PREFIX = "step-"
_TRAINER, _MODEL, _STATE = "trainer", "model", "state.json"

WriteModel = Callable[[Path, Callable[[list[str]], Mapping[str, Tensor]]], None]
"""Writes a model directory; its second argument gives whole tensors of the checkpoint, on the CPU, by name."""


class AbandonedError(Exception):
    """What was being written is no longer wanted."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been checked.

    Args:
        step: optimizer steps done.
        folder: where it is.
        state: what was saved as JSON.
    """

    step: int
    folder: Folder
    state: Mapping[str, Any]

    def reader(self) -> SafetensorsReader:
        """Of its tensors."""
        return SafetensorsReader(self.folder / _TRAINER)


@dataclass(frozen=True)
class Contents:
    """What goes into a checkpoint.

    Args:
        tensors: by name, which begins with a group and a point; the same names on all ranks.
        state: JSON values; those of rank 0 are saved.
        measures: flat numbers for the manifest: what was measured of these very weights.
        files: further small files of `trainer/`, by name.
        write_model: writes `model/`, on rank 0, at any time after the tensors are copied.
    """

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]
    measures: Mapping[str, float]
    files: Mapping[str, str]
    write_model: WriteModel


class Checkpoints:
    """The checkpoints of one run. Every rank has one, and all call the same methods in the same order.

    Args:
        folder: that they are in; all ranks see the same.
        settings: when, and which are kept.
        world: the ranks.
        reach: steps back from the newest within which none may be the one to go back to; 0 where nothing goes back.
    """

    def __init__(self, folder: Folder, settings: CheckpointsConfig, world: World = ALONE, reach: int = 0) -> None:
        self.folder, self.settings, self.world, self.reach = folder, settings, world, reach
        # Its own, because it is used at the same time as the one that training communicates through.
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._writing: threading.Thread | None = None
        self._error: BaseException | None = None
        self._abandoned = threading.Event()
        self._best: float | None = None
        if world.size == 1:
            # To be alone is no reason for a warning.
            warnings.filterwarnings("ignore", "torch.distributed is disabled", module="torch.distributed.checkpoint")

    def save(self, step: int, contents: Contents, *, wait: bool = True) -> None:
        """Write a checkpoint, once the one before it is written.

        Args:
            step: optimizer steps done.
            contents: what is saved. Its tensors may change as soon as this returns.
            wait: return when it is written. Otherwise it is written while training goes on, and an error comes out of
                the next call of any method here, or of `look`.

        Raises:
            LLMKitError: the disk is full or fails; the checkpoints before are untouched.
        """
        self.wait()
        background = self.settings.asynchronous and not wait
        staged = stage(contents.tensors, self._group, copies=background)
        self._note(contents.measures)
        self._abandoned.clear()
        self._writing = threading.Thread(target=self._write, args=(step, contents, staged), daemon=True)
        self._writing.start()
        if not background:
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            LLMKitError: what was being written could not be.
        """
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        self.look()

    def let_finish(self) -> None:
        """Wait until nothing is being written, on the way out with another error."""
        try:
            self.wait()
        except Exception as error:
            warn(str(error))

    def abandon(self) -> None:
        """Give up what is being written; it is not waited for where that depends on other ranks."""
        self._abandoned.set()
        if self._writing is not None and self._group is None:
            self._writing.join()

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written."""
        return self._error is not None

    def look(self) -> None:
        """Raise the error that ended the writing of a checkpoint, if there is one."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def is_best(self, measures: Mapping[str, float]) -> bool:
        """Whether what was measured is better than at every checkpoint so far; not where nothing was measured.

        Raises:
            LLMKitError: the metric of the settings was not among it.
        """
        best = self.settings.keep_best
        if best is None or not measures:
            return False
        value = measures.get(best.metric)
        if value is None:
            raise LLMKitError(
                f"checkpoints.keep_best: validation has no `{best.metric}`.",
                hint=f"It has: {', '.join(sorted(measures))}.",
            )
        return self._best is None or best_step({0: self._best, 1: value}, best) == 1

    def _note(self, measures: Mapping[str, float]) -> None:
        if measures and self.is_best(measures):
            assert self.settings.keep_best is not None
            self._best = measures[self.settings.keep_best.metric]

    def _write(self, step: int, contents: Contents, staged: Staged) -> None:
        place = self.folder / _name(step)

        def prepare() -> None:
            self._go_on()
            if place.files():
                place.remove(MANIFEST)

        def commit(entries: list[FileEntry]) -> None:
            self._commit(place, step, contents, staged, entries)
            self._retain(step)

        try:
            with _failures(step, place, "written"):
                save(
                    dict(staged.owned),
                    storage_writer=SafetensorsWriter(place / _TRAINER, prepare, commit, self._go_on),
                    planner=StagedPlanner(staged.parts),
                    process_group=self._group,
                    no_dist=self._group is None,
                )
        except BaseException as error:
            self._error = error
            if self.world.is_main and isinstance(error, LLMKitError):
                with contextlib.suppress(OSError):
                    # Half a checkpoint would take the room that the next attempt needs.
                    if place.size(MANIFEST) is None:
                        place.remove(MANIFEST)

    def _commit(self, place: Folder, step: int, contents: Contents, staged: Staged, tensors: list[FileEntry]) -> None:
        """Write all that is not tensors, and the manifest last: all ranks have written their parts."""
        entries = [_below(_TRAINER, entry) for entry in tensors]
        for name, text in {**contents.files, _STATE: json.dumps(contents.state)}.items():
            entries.append(_write_text(place, f"{_TRAINER}/{name}", text))
        trainer = place / _TRAINER

        def whole(names: list[str]) -> Mapping[str, Tensor]:
            if self._group is None:
                return {name: staged.parts[name] for name in names}
            return SafetensorsReader(trainer).whole(names)

        entries += _write_directory(place, _MODEL, lambda path: contents.write_model(path, whole))
        measures = {f"validation_{name}": value for name, value in contents.measures.items()}
        files = tuple(sorted(entries, key=lambda entry: entry.path))
        manifest = Manifest(
            kind="checkpoint", stage="checkpoint", name=_name(step), stage_digest="",
            content_digest=content_digest(files), config={}, inputs={}, facts={},
            summary={"step": step, **measures}, versions=versions(), files=files,
        )  # fmt: skip
        place.sync()
        self._go_on()
        place.write_whole(MANIFEST, manifest_text(manifest))

    def _go_on(self) -> None:
        if self._abandoned.is_set():
            raise AbandonedError

    def _retain(self, newest: int) -> None:
        found = self._manifests()
        kept = kept_steps(self._measures(found), newest, self.settings, self.reach)
        for step in found.keys() - kept:
            (self.folder / _name(step)).remove(MANIFEST)

    def _manifests(self) -> dict[int, Manifest | ArtifactError]:
        """What the manifests of the folder say, by step in order; what is wrong, with those that cannot be read."""
        found: dict[int, Manifest | ArtifactError] = {}
        for name in self.folder.folders():
            step = name.removeprefix(_PREFIX)
            place = self.folder / name
            if name.startswith(_PREFIX) and step.isdecimal() and place.size(MANIFEST) is not None:
                try:
                    found[int(step)] = parse_manifest(place.read(MANIFEST), f"{place}/{MANIFEST}")
                except ArtifactError as error:
                    found[int(step)] = error
        return dict(sorted(found.items()))

    def _measures(self, found: Mapping[int, Manifest | ArtifactError]) -> dict[int, float | None]:
        best = self.settings.keep_best
        metric = "" if best is None else f"validation_{best.metric}"
        return {
            step: manifest.summary.get(metric) for step, manifest in found.items() if isinstance(manifest, Manifest)
        }

    def newest(self, wanted: Callable[[int, Mapping[str, Any]], bool] = lambda step, state: True) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None; damaged ones are named and passed over.

        Every file is read and compared with its sha256, by all ranks together. What a killed write has left is removed.
        Damaged checkpoints go when the next one is written.

        Args:
            wanted: tells by step and state which ones count; others are removed. Rank 0's answer is taken.
        """
        self.wait()
        found = self._manifests() if self.world.is_main else {}
        if self.world.is_main:
            self._clear(found)
        for step in reversed(self.world.share(list(found))):
            place = self.folder / _name(step)
            problem, state = self._examine(place, found.get(step))
            if problem is not None:
                if self.world.is_main:
                    warn(f"the checkpoint {place} is damaged and passed over: {problem}")
                continue
            if self.world.share(self.world.is_main and wanted(step, state)):
                self._remember(found, step)
                return Checkpoint(step, place, state)
            if self.world.is_main:
                place.remove(MANIFEST)
        return None

    def _examine(self, place: Folder, manifest: Manifest | ArtifactError | None) -> tuple[str | None, Any]:
        """What is wrong with a checkpoint, or None and its state; rank 0 knows the manifest."""
        if self.world.share(isinstance(manifest, ArtifactError)):
            return str(manifest), None
        files = manifest.files if isinstance(manifest, Manifest) else ()
        problem = first_damage(place, files, self.world)
        if problem is not None:
            return problem, None
        state = json.loads(place.read(f"{_TRAINER}/{_STATE}")) if self.world.is_main else None
        return None, self.world.share(state)

    def _remember(self, found: Mapping[int, Manifest | ArtifactError], step: int) -> None:
        """What the best measure is, up to the step gone on from."""
        self._best = None
        measures = {each: value for each, value in self._measures(found).items() if each <= step}
        if self.settings.keep_best is not None:
            chosen = best_step(measures, self.settings.keep_best)
            self._best = self.world.share(None if chosen is None else measures[chosen])

    def _clear(self, found: Mapping[int, Manifest | ArtifactError]) -> None:
        """Remove folders that a killed write or removal has left without a manifest."""
        for name in self.folder.folders():
            step = name.removeprefix(_PREFIX)
            if name.startswith(_PREFIX) and step.isdecimal() and int(step) not in found:
                (self.folder / name).remove(MANIFEST)

    def load(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
        """Set tensors, in place, to what a checkpoint holds under their names, however they are divided now."""
        with _failures(checkpoint.step, checkpoint.folder, "read"):
            load(
                dict(tensors),
                storage_reader=checkpoint.reader(),
                planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                process_group=self._group,
                no_dist=self._group is None,
            )


def open_checkpoints(config: TrainConfig, context: Context, world: World, *, measured: bool) -> Checkpoints:
    """The checkpoints of a stage, in its folder or where the settings say.

    Args:
        config: settings.
        context: the stage.
        world: the ranks.
        measured: whether there is validation.

    Raises:
        ConfigError: the best one is to be kept, and nothing is measured; or the place cannot be opened.
    """
    settings = config.checkpoints
    if settings.keep_best is not None and not measured:
        raise ConfigError(
            "there is no validation data to tell which checkpoint is the best.",
            where=context.place("checkpoints.keep_best"),
            hint="Remove it, or hold some of the data out for validation.",
        )
    if settings.directory is None:
        folder = Folder.at(context.directory / "checkpoints")
    else:
        place = Folder.at(settings.directory, context.place("checkpoints.directory"))
        # The stage's folder is named after the digest of its settings and inputs.
        folder = place / context.directory.absolute().parent.name / context.directory.name
    return Checkpoints(folder, settings, world, config.spikes.reach)


def _name(step: int) -> str:
    return f"{_PREFIX}{step:08d}"


def _below(folder: str, entry: FileEntry) -> FileEntry:
    return FileEntry(f"{folder}/{entry.path}", entry.size, entry.sha256, entry.content)


def _write_text(place: Folder, name: str, text: str) -> FileEntry:
    with place.create(name) as stream:
        hashed = HashedStream(stream)
        hashed.write(text.encode("utf-8"))
    return FileEntry(name, hashed.size, hashed.sha256.hexdigest(), content=True)


def _write_directory(place: Folder, name: str, write: Callable[[Path], None]) -> list[FileEntry]:
    """Write a directory through the local disk: in its place, or beside and then to the URL."""
    if place.local is not None:
        write(place.local / name)
        return [_below(name, entry) for entry in list_files(place.local / name, ["*"])]
    entries = []
    with tempfile.TemporaryDirectory(prefix="llmkit-") as scratch:
        directory = Path(scratch) / name
        write(directory)
        for file in sorted(found for found in directory.rglob("*") if found.is_file()):
            target = f"{name}/{file.relative_to(directory).as_posix()}"
            with file.open("rb") as source, place.create(target) as stream:
                hashed = HashedStream(stream)
                while piece := source.read(1 << 24):
                    hashed.write(piece)
            entries.append(FileEntry(target, hashed.size, hashed.sha256.hexdigest(), content=True))
    return entries


@contextmanager
def _failures(step: int, place: Folder, what: str) -> Iterator[None]:
    """What a person can mend as a sentence, from whichever rank it comes; anything else as it is."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _failed(step, place, what, error) from error
    except CheckpointException as errors:
        for rank, (cause, _) in sorted(errors.failures.items()):
            if isinstance(cause, LLMKitError | AbandonedError):
                raise cause from errors
            if isinstance(cause, OSError | SafetensorError):
                raise _failed(step, place, what, cause, rank) from errors
        raise RuntimeError(f"the checkpoint of step {step:,} could not be {what}: {errors}") from errors


def _failed(step: int, place: Folder, what: str, error: Exception, rank: int = 0) -> LLMKitError:
    by = f" by rank {rank}" if rank else ""
    return LLMKitError(
        f"the checkpoint of step {step:,} could not be {what}{by}: {error}.",
        where=str(place),
        hint="Make room or mend the disk and start again: training goes on from the last checkpoint that is whole.",
    )
