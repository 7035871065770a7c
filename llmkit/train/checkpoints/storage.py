"""What torch.distributed.checkpoint writes tensors to and reads them from: safetensors and JSON, on disk or at a URL.

Each rank writes the parts of tensors that it owns to files of its own (`weights-00000.safetensors`: group of tensors,
and rank); which file holds which part of which tensor is in `tensors.json`. Tensors are read by ranges, so that any
other number of ranks, with any other division of the tensors, reads what it needs. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from llmkit.store.artifact import FileEntry
from llmkit.store.folders import Folder
from llmkit.train.checkpoints.tensor_file import DTYPES, NAMES, HashedStream, TensorFile, write_tensors

INDEX = "tensors.json"
FORMAT = 1


@dataclass(frozen=True)
class Stored:
    """Where a part of a tensor is: the file, and its name there."""

    file: str
    name: str


@dataclass(frozen=True)
class _Written:
    """What a rank tells rank 0 of a part that it wrote."""

    entry: FileEntry
    name: str


class StagedPlanner(DefaultSavePlanner):
    """Plans by the tensors of the model, and takes the numbers from copies of this rank's parts.

    Args:
        staged: the copies by name.
    """

    def __init__(self, staged: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._staged = staged

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The copy of this rank's part of a tensor."""
        return self._staged[index.fqn]


class SafetensorsWriter(StorageWriter):
    """Writes tensors whose names begin with a group and a point ("weights.blocks.0...").

    Args:
        folder: where to.
        prepare: called on the coordinating rank before any rank writes.
        committed: called there with the entries of all files, once all ranks have written theirs.
        go_on: called now and then; raises an error to end the writing.
    """

    def __init__(
        self,
        folder: Folder,
        prepare: Callable[[], None],
        committed: Callable[[list[FileEntry]], None],
        go_on: Callable[[], None],
    ) -> None:
        self._folder, self._prepare, self._committed, self._go_on = folder, prepare, committed, go_on

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Ranks write when all are set up."""
        if is_coordinator:
            self._prepare()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As planned."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Tell each rank the number that its files bear."""
        return [replace(plan, storage_data=rank) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's parts, a file for each group."""
        groups: dict[str, list[WriteItem]] = {}
        for item in plan.items:
            groups.setdefault(item.index.fqn.partition(".")[0], []).append(item)
        results: list[WriteResult] = []
        for group, items in groups.items():
            tensors = {_part_name(item): planner.resolve_data(item) for item in items}
            assert all(isinstance(tensor, Tensor) for tensor in tensors.values())
            file = f"{group}-{plan.storage_data:05d}.safetensors"
            with self._folder.create(file) as stream:
                hashed = HashedStream(stream, self._go_on)
                write_tensors(hashed, tensors)  # type: ignore[arg-type]
            entry = FileEntry(file, hashed.size, hashed.sha256.hexdigest(), content=True)
            for item in items:
                written = _Written(entry, _part_name(item))
                results.append(WriteResult(item.index, 0, written))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write where everything is."""
        written: dict[MetadataIndex, _Written] = {each.index: each.storage_data for rank in results for each in rank}
        tensors = {}
        for name, found in sorted(metadata.state_dict_metadata.items()):
            assert isinstance(found, TensorStorageMetadata)
            chunks = []
            for chunk in found.chunks:
                place = written[MetadataIndex(name, chunk.offsets)]
                chunks.append(
                    {"offsets": list(chunk.offsets), "shape": list(chunk.sizes),
                     "file": place.entry.path, "name": place.name}
                )  # fmt: skip
            dtype = NAMES[found.properties.dtype]
            tensors[name] = {"dtype": dtype, "shape": list(found.size), "chunks": chunks}
        text = json.dumps({"format": FORMAT, "tensors": tensors}, indent=1) + "\n"
        with self._folder.create(INDEX) as stream:
            hashed = HashedStream(stream)
            hashed.write(text.encode())
        entries = {place.entry.path: place.entry for place in written.values()}
        entries[INDEX] = FileEntry(INDEX, hashed.size, hashed.sha256.hexdigest(), content=True)
        self._committed(list(entries.values()))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """It is never looked for by a path."""
        return False


def _part_name(item: WriteItem) -> str:
    """Name in a file: the tensor's own, without the group that the file is for, and where a later part begins."""
    offsets = item.index.offset
    at = "" if offsets is None or not any(offsets) else "@" + ",".join(map(str, offsets))
    return item.index.fqn.partition(".")[2] + at


class SafetensorsReader(StorageReader):
    """Reads what `SafetensorsWriter` wrote, by any division of the tensors.

    Args:
        folder: where it is.

    Raises:
        ValueError: the index is of another format.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        raw = json.loads(folder.read(INDEX))
        if raw["format"] != FORMAT:
            raise ValueError(f"{INDEX} is of format {raw['format']}; this version reads {FORMAT}")
        self.tensors: dict[str, TensorStorageMetadata] = {}
        self._stored: dict[MetadataIndex, Stored] = {}
        for name, entry in raw["tensors"].items():
            chunks = []
            for chunk in entry["chunks"]:
                offsets = torch.Size(chunk["offsets"])
                chunks.append(ChunkStorageMetadata(offsets, torch.Size(chunk["shape"])))
                self._stored[MetadataIndex(name, offsets)] = Stored(chunk["file"], chunk["name"])
            properties = TensorProperties(dtype=DTYPES[entry["dtype"]])
            self.tensors[name] = TensorStorageMetadata(properties, torch.Size(entry["shape"]), chunks)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A reader is for one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Which tensors there are, and how they are divided."""
        return Metadata(dict(self.tensors))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Every rank reads alike."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As planned."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As planned."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the parts that this rank needs into its tensors."""
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self._stored[item.storage_index].file, []).append(item)
        for file, items in by_file.items():
            with self._opened(file) as opened:
                for item in items:
                    part = _read_part(opened, self._stored[item.storage_index].name, item)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(part)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def whole(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors put together from their parts, on the CPU."""
        found: dict[str, Tensor] = {}
        with ExitStack() as stack:
            files: dict[str, TensorFile] = {}
            for name in names:
                metadata = self.tensors[name]
                tensor = found[name] = torch.empty(metadata.size, dtype=metadata.properties.dtype)
                for chunk in metadata.chunks:
                    stored = self._stored[MetadataIndex(name, chunk.offsets)]
                    if stored.file not in files:
                        files[stored.file] = stack.enter_context(self._opened(stored.file))
                    pieces = zip(chunk.offsets, chunk.sizes, strict=True)
                    place = tuple(slice(at, at + size) for at, size in pieces)
                    tensor[place] = files[stored.file].read(stored.name)
        return found

    @contextmanager
    def _opened(self, file: str) -> Iterator[TensorFile]:
        with self._folder.open(file) as stream:
            yield TensorFile(stream)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """It is never looked for by a path."""
        return False


def _read_part(opened: TensorFile, name: str, item: ReadItem) -> Tensor:
    """The part of a stored part that is wanted: its rows are read, and the other dimensions cut."""
    offsets, lengths = list(item.storage_offsets), list(item.lengths)
    if not lengths:
        return opened.read(name)
    rows = opened.read(name, offsets[0], offsets[0] + lengths[0])
    pieces = zip(offsets[1:], lengths[1:], strict=True)
    return rows[(slice(None), *(slice(at, at + size) for at, size in pieces))]
