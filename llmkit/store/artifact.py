"""Artifacts: a directory whose `manifest.json` is written last and names every file with its size and sha256.

What is in a manifest is described by `Manifest`. The content digest covers the files that make up the result and not
its logs or timings, so that a stage made anew with equal bytes leaves everything after it up to date.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llmkit.config.base import Facts
from llmkit.errors import ArtifactError
from llmkit.store.files import sha256_file, sha256_json, sync_directory, sync_file, write_text_atomic

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class FileEntry:
    """A file of an artifact: path relative to it, size in bytes, sha256, and whether it counts as content."""

    path: str
    size: int
    sha256: str
    content: bool


@dataclass(frozen=True)
class Manifest:
    """What an artifact says of itself.

    Args:
        kind: kind of artifact (see `llmkit.config.base.Facts`).
        stage: kind of the stage that made it, or "checkpoint".
        name: name of the stage.
        stage_digest: digest of settings, inputs and code version; decides whether the stage is up to date.
        content_digest: digest of the content files; what later stages depend on.
        config: the stage's settings, defaults included.
        inputs: for each input's dotted key: the value written, where it was found, and its digest.
        facts: properties of the artifact (see `Facts`).
        summary: numbers worth showing, among them cost (seconds, tokens, FLOPs).
        versions: llmkit, torch and python versions that made it.
        files: every file.
        seal: digest of all the rest, filled in where the manifest is written; empty in those of earlier versions.
    """

    kind: str
    stage: str
    name: str
    stage_digest: str
    content_digest: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, str]]
    facts: Mapping[str, Any]
    summary: Mapping[str, Any]
    versions: Mapping[str, str]
    files: tuple[FileEntry, ...]
    status: str = "complete"
    format: int = FORMAT
    seal: str = ""


@dataclass(frozen=True)
class Artifact:
    """An opened artifact."""

    path: Path
    manifest: Manifest = field(repr=False)

    @property
    def facts(self) -> Facts:
        """Kind and properties."""
        return Facts(self.manifest.kind, self.manifest.facts)

    @property
    def digest(self) -> str:
        """The content digest."""
        return self.manifest.content_digest

    def file(self, relative: str) -> Path:
        """Path of a file of the artifact.

        Raises:
            ArtifactError: the manifest lists no such file.
        """
        if not any(entry.path == relative for entry in self.manifest.files):
            raise ArtifactError(f"the artifact has no file `{relative}`.", where=str(self.path))
        return self.path / relative


def is_artifact(path: Path) -> bool:
    """Whether a folder holds a manifest."""
    return (path / MANIFEST).is_file()


def open_artifact(path: Path, *, verify: bool = True) -> Artifact:
    """Open an artifact and, unless told otherwise, check every file against the manifest.

    Raises:
        ArtifactError: no manifest, a manifest of another format, or a file that is missing, of another size or with
            other bytes; the message names the file.
    """
    manifest = _read_manifest(path)
    for entry in manifest.files:
        problem = _damage(path / entry.path, entry, verify)
        if problem:
            raise ArtifactError(
                f"the file `{entry.path}` {problem}.",
                where=str(path),
                hint="Restore it, or remove the folder so that its stage runs again.",
            )
    return Artifact(path, manifest)


def _damage(file: Path, entry: FileEntry, verify: bool) -> str | None:
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    if size != entry.size:
        return f"is {size:,} bytes long and should be {entry.size:,}"
    if verify and sha256_file(file) != entry.sha256:
        return "has other bytes than when it was written (its sha256 differs)"
    return None


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        raise ArtifactError("there is no finished artifact here (no manifest.json).", where=str(path)) from None
    except OSError as error:
        raise _unreadable(error, str(file)) from None
    return parse_manifest(text, str(file))


def parse_manifest(text: bytes, where: str) -> Manifest:
    """The manifest that a file holds.

    Raises:
        ArtifactError: it is of another format, or damaged.
    """
    try:
        raw = json.loads(text)
        if raw["format"] != FORMAT:
            raise ArtifactError(
                f"the manifest is of format {raw['format']}; this version reads {FORMAT}.",
                where=where,
                hint="Remove the folder so that its stage runs again.",
            )
        if "seal" in raw and (text != _text(raw) or _seal(raw) != raw["seal"]):
            raise ValueError("it has other bytes than when it was written")
        files = tuple(_entry(entry) for entry in raw.pop("files"))
        manifest = Manifest(files=files, **raw)
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(error, where) from None
    unsafe = [entry.path for entry in files if Path(entry.path).is_absolute() or ".." in Path(entry.path).parts]
    if unsafe or content_digest(files) != manifest.content_digest:
        problem = (
            f"names a file outside its folder: {unsafe[0]}" if unsafe else "does not add up to its own content digest"
        )
        raise ArtifactError(f"the manifest {problem}.", where=where)
    return manifest


def _unreadable(error: Exception, where: str) -> ArtifactError:
    return ArtifactError(
        f"the manifest cannot be read: {error}.", where=where, hint="Remove the folder so that its stage runs again."
    )


def manifest_text(manifest: Manifest) -> str:
    """What the file of a manifest holds: indented JSON with a digest of itself, so that no flipped bit is missed."""
    raw = asdict(manifest)
    return _text({**raw, "seal": _seal(raw)}).decode()


def _text(raw: Mapping[str, Any]) -> bytes:
    return (json.dumps(raw, indent=2, ensure_ascii=False) + "\n").encode()


def _seal(raw: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text({**raw, "seal": ""})).hexdigest()


def _entry(raw: Mapping[str, Any]) -> FileEntry:
    entry = FileEntry(**raw)
    wanted = (str, int, str, bool)
    if not all(type(value) is kind for value, kind in zip(asdict(entry).values(), wanted, strict=True)):
        raise TypeError(f"an entry of its files is malformed: {raw}")
    return entry


def content_digest(files: Iterable[FileEntry]) -> str:
    """Digest of the names and bytes of the content files."""
    return sha256_json(sorted([entry.path, entry.sha256] for entry in files if entry.content))


def list_files(directory: Path, content: Iterable[str]) -> tuple[FileEntry, ...]:
    """Entries of every file below `directory` but its manifest, each synced to disk; `content` are glob patterns."""
    patterns = list(content)
    entries = []
    for file in sorted(directory.rglob("*")):
        relative = file.relative_to(directory).as_posix()
        if file.is_dir():
            sync_directory(file)
        elif relative != MANIFEST:
            sync_file(file)
            is_content = any(fnmatch(relative, pattern) for pattern in patterns)
            entries.append(FileEntry(relative, file.stat().st_size, sha256_file(file), is_content))
    return tuple(entries)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the commit mark of an artifact whose files are all written and synced."""
    write_text_atomic(directory / MANIFEST, manifest_text(manifest))
    sync_directory(directory)
