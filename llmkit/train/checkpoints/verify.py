"""Comparing a checkpoint's files with its manifest, the work divided among the ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict

from llmkit.store.artifact import FileEntry
from llmkit.store.folders import Folder
from llmkit.train.world import World

_PIECE = 1 << 22


def first_damage(place: Folder, files: Sequence[FileEntry], world: World) -> str | None:
    """What is wrong with the first damaged file, on every rank; None where all are whole.

    Args:
        place: the folder of the checkpoint.
        files: what its manifest says; rank 0's is taken.
        world: the ranks, each of which reads a part of the files.
    """
    entries = [FileEntry(**raw) for raw in world.share([asdict(entry) for entry in files])]
    mine: list[int] = []
    load = [0] * world.size
    for index in sorted(range(len(entries)), key=lambda index: -entries[index].size):
        owner = load.index(min(load))
        load[owner] += entries[index].size
        if owner == world.rank:
            mine.append(index)
    bad = next((index for index in mine if file_damage(place, entries[index])), -1)
    found = [int(index) for (index,) in world.gather([float(bad)]) if index >= 0]
    if not found:
        return None
    entry = entries[min(found)]
    # Read again for the words; a file that was unreadable for a moment is not trusted either.
    return f"the file `{entry.path}` {file_damage(place, entry) or 'could not be read at first'}."


def file_damage(place: Folder, entry: FileEntry) -> str | None:
    """What is wrong with a file, as the end of a sentence; None where it is whole."""
    try:
        size = place.size(entry.path)
        if size is None:
            return "is missing"
        if size != entry.size:
            return f"is {size:,} bytes long and should be {entry.size:,}"
        digest = hashlib.sha256()
        with place.open(entry.path) as stream:
            while piece := stream.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        return f"cannot be read: {error}"
    return (
        None if digest.hexdigest() == entry.sha256 else "has other bytes than when it was written (its sha256 differs)"
    )
