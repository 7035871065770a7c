"""Checkpoints that are whole or absent.

    checkpoints/step-00000400/
      model/            a Hugging Face directory, as the finished stage will have, or the adapter where one is trained
      trainer/          weights, optimizer and source state as safetensors, numbers as JSON
      manifest.json     every file with its sha256, written last

`trainer/weights.safetensors` holds every tensor that training changes, although `model/` holds most of them again: what
a model directory keeps (merged adapters, no value head, another layout) is up to the stage, and going on from it would
not be exact. That costs a quarter more disk than AdamW's state and the model alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmkit.console import warn
from llmkit.errors import ArtifactError, LLMKitError
from llmkit.model.tensors import write_safetensors
from llmkit.store.artifact import Manifest, content_digest, list_files, open_artifact, write_manifest
from llmkit.store.files import remove_tree, replace_directory
from llmkit.store.workspace import versions

_PREFIX = "step-"
_STATE = "trainer/state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been checked.

    Args:
        step: optimizer steps done.
        path: its folder.
        state: what was saved as JSON.
    """

    step: int
    path: Path
    state: Mapping[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors saved under a name, on the CPU; none if none were saved."""
        file = self.path / "trainer" / f"{name}.safetensors"
        if not file.exists():
            return {}
        with safe_open(file, framework="pt") as stored:
            return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - it is no mapping


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: folder that they are in.
        keep: how many of the newest to keep.
        reach: steps back from the newest within which none may be the one to go back to; 0 where nothing goes back.
    """

    def __init__(self, directory: Path, keep: int, reach: int = 0) -> None:
        self.directory = directory
        self.keep = keep
        self.reach = reach

    def save(
        self,
        step: int,
        write_model: Callable[[Path], None],
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint beside its place, sync it, put it there, and remove those that are too old.

        Args:
            step: optimizer steps done.
            write_model: writes the Hugging Face directory.
            tensors: tensors by file and name.
            state: JSON values.

        Raises:
            LLMKitError: the disk is full or fails; the checkpoints before are untouched.
        """
        place = self.directory / f"{_PREFIX}{step:08d}"
        beside = self.directory / f".{place.name}.partial"
        try:
            _clear(beside)
            (beside / "trainer").mkdir(parents=True)
            write_model(beside / "model")
            for name, values in tensors.items():
                if values:
                    write_safetensors(_storable(values), beside / "trainer" / f"{name}.safetensors")
            (beside / _STATE).write_text(json.dumps(state), encoding="utf-8")
            files = list_files(beside, ["*"])
            write_manifest(
                beside,
                Manifest(
                    kind="checkpoint", stage="checkpoint", name=place.name, stage_digest="",
                    content_digest=content_digest(files), config={}, inputs={}, facts={},
                    summary={"step": step}, versions=versions(), files=files,
                ),
            )  # fmt: skip
            replace_directory(beside, place)
        except (OSError, SafetensorError) as error:
            raise LLMKitError(
                f"the checkpoint of step {step:,} could not be written: {error}.",
                where=str(place),
                hint="Make room or mend the disk and start again: training goes on from the checkpoint before.",
            ) from error
        folders = self._folders()
        # The newest that is old enough to go back to stays, however many came after it.
        anchor = next((path for path in reversed(folders) if _step(path) <= step - self.reach), folders[0])
        for old in folders[: -self.keep]:
            if not self.reach or old != anchor:
                remove_tree(old)
        return place

    def newest(self, wanted: Callable[[int, Mapping[str, Any]], bool] = lambda step, state: True) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None; damaged ones are named and removed, as are leftovers.

        Args:
            wanted: tells by step and state which ones count; others are removed.
        """
        if not self.directory.is_dir():
            return None
        for leftover in list(self.directory.glob(".*")):
            _clear(leftover)
        for path in reversed(self._folders()):
            try:
                open_artifact(path)
                state = json.loads((path / _STATE).read_text(encoding="utf-8"))
                step = _step(path)
                if wanted(step, state):
                    return Checkpoint(step, path, state)
                remove_tree(path)
            except (ArtifactError, OSError, ValueError) as error:
                warn(f"the checkpoint {path.name} is damaged and passed over: {error}")
                remove_tree(path)
        return None

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.directory.glob(f"{_PREFIX}*") if path.is_dir())


def _step(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _clear(path: Path) -> None:
    if path.is_dir():
        remove_tree(path)


def _storable(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and each with memory of its own."""
    taken: set[int] = set()
    storable = {}
    for name, value in values.items():
        tensor = value.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        storable[name] = tensor if whole and pointer not in taken else tensor.clone()
        taken.add(pointer)
    return storable
