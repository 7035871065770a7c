"""Where a stage writes until it is done: a folder beside the artifact's place, kept when the work is interrupted.

The folder is named after the digest of settings, inputs and code version (`pretrain.partial-1a2b3c4d5e6f`). An attempt
with the same digest goes on in it; one with other settings gets a folder of its own, and the work in the first is kept.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmkit.store.artifact import (
    Artifact,
    Manifest,
    content_digest,
    is_artifact,
    list_files,
    open_artifact,
    write_manifest,
)
from llmkit.store.files import locked, replace_directory, write_json_atomic
from llmkit.store.stage import Outcome

STATE = "stage.json"


@dataclass(frozen=True)
class StageIdentity:
    """What a stage is about to make, as far as it is known before the work.

    Args:
        stage: kind of the stage.
        name: name of the stage.
        digest: digest of settings, inputs and code version.
        config: the settings, defaults included.
        inputs: value, path and digest by dotted key.
    """

    stage: str
    name: str
    digest: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Workspace:
    """A folder to write an artifact in; made by `workspace`."""

    place: Path
    directory: Path
    identity: StageIdentity

    def commit(self, outcome: Outcome) -> Artifact:
        """Write the manifest, and put the folder in its place instead of what stood there."""
        (self.directory / STATE).unlink()
        files = list_files(self.directory, outcome.content)
        manifest = Manifest(
            kind=outcome.facts.kind,
            stage=self.identity.stage,
            name=self.identity.name,
            stage_digest=self.identity.digest,
            content_digest=content_digest(files),
            config=self.identity.config,
            inputs=self.identity.inputs,
            facts=dict(outcome.facts.properties),
            summary=dict(outcome.summary),
            versions=versions(),
            files=files,
        )
        write_manifest(self.directory, manifest)
        replace_directory(self.directory, self.place)
        return open_artifact(self.place, verify=False)


@contextmanager
def workspace(place: Path, identity: StageIdentity) -> Iterator[Workspace | Artifact]:
    """Lock the artifact's place and give the workspace to make it in.

    Yields:
        the workspace; or the finished artifact, where an earlier attempt was stopped after its manifest was written.

    Raises:
        ArtifactLockedError: another process is making the artifact.
    """
    with locked(place.with_name(f".{place.name}.lock"), f"the stage `{identity.name}`"):
        directory = partial_directory(place, identity.digest)
        if is_artifact(directory):
            open_artifact(directory, verify=True)
            replace_directory(directory, place)
            yield open_artifact(place, verify=False)
            return
        directory.mkdir(parents=True, exist_ok=True)
        write_json_atomic(
            directory / STATE,
            {"status": "running", "stage": identity.stage, "name": identity.name, "stage_digest": identity.digest,
             "config": dict(identity.config), "inputs": {key: dict(value) for key, value in identity.inputs.items()}},
        )  # fmt: skip
        yield Workspace(place, directory, identity)


def partial_directory(place: Path, digest: str) -> Path:
    """Folder of an unfinished artifact."""
    return place.with_name(f"{place.name}.partial-{digest[:12]}")


def versions() -> dict[str, str]:
    """Versions of llmkit, torch, tokenizers and Python, without importing any."""
    found = {"python": platform.python_version()}
    for package in ("llmkit", "torch", "tokenizers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
