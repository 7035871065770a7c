"""Finding what a config points to: another stage's artifact, a path, or a hub repository."""

from __future__ import annotations

import glob
import json
from pathlib import Path

from llmkit.config.base import Facts, Finding, Input, nearest
from llmkit.config.experiment import Experiment
from llmkit.data.sources.files import find_files, is_url, name_of
from llmkit.errors import ArtifactError, DataError, LLMKitError
from llmkit.store.artifact import is_artifact, open_artifact
from llmkit.store.files import sha256_file, sha256_json, write_json_atomic
from llmkit.store.hub import PREFIX, download_model
from llmkit.store.stage import ResolvedInput


def stage_directory(experiment: Experiment, name: str) -> Path:
    """Where a stage's artifact stands."""
    return run_directory(experiment) / name


def run_directory(experiment: Experiment) -> Path:
    """The folder of the run."""
    return Path(experiment.settings.runs_dir) / experiment.settings.run


class DigestCache:
    """Digests of files outside the store, remembered by path, size, mtime and inode: large files are read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[str | int]] = {}
        if path.is_file():
            try:
                self._known = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                self._known = {}

    def digest(self, path: Path) -> str:
        """sha256 of a file, or of the names and digests of all files below a folder."""
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            return sha256_json([[file.relative_to(path).as_posix(), self._file(file)] for file in files])
        return self._file(path)

    def _file(self, path: Path) -> str:
        stat = path.stat()
        mark: list[str | int] = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        key = str(path.absolute())
        known = self._known.get(key)
        if known is None or known[:3] != mark:
            known = self._known[key] = [*mark, sha256_file(path)]
        return str(known[3])

    def save(self) -> None:
        """Write what is known, for the next run."""
        if self._known:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self._path, self._known)


def outside_facts(experiment: Experiment) -> tuple[dict[str, Facts], list[tuple[str, Finding]]]:
    """Facts of every input that is no stage, by the value written, without reading more than small JSON files.

    Returns:
        the facts, and a finding for each input that is not there.
    """
    facts: dict[str, Facts] = {}
    missing: list[tuple[str, Finding]] = []
    for name, config in experiment.stages.items():
        for needed in config.inputs():
            if needed.value in experiment.stages or needed.value in facts:
                continue
            try:
                facts[needed.value] = _outside(needed.value)
            except FileNotFoundError:
                missing.append((name, _not_found(needed, experiment)))
            except LLMKitError as error:
                missing.append((name, Finding(str(error), key=needed.key)))
    return facts, missing


def _not_found(needed: Input, experiment: Experiment) -> Finding:
    guess = nearest(needed.value, experiment.stages)
    looks_like_path = "/" in needed.value or "." in needed.value
    message = (
        f"there is no file or folder `{needed.value}` (looked in {Path.cwd()})."
        if looks_like_path
        else f"`{needed.value}` is neither a stage of this config nor a file or folder."
    )
    hint = f"Did you mean `{guess}`?" if guess else f"Stages: {', '.join(experiment.stages)}."
    return Finding(message, key=needed.key, hint=hint if guess or not looks_like_path else None)


def _outside(value: str) -> Facts:
    if value.startswith(PREFIX):
        return Facts("unknown")
    if is_url(value):
        # Asked for when the stage is checked and run: this looks at what is on the disk alone.
        return Facts("file", {"suffix": Path(name_of(value)).suffix})
    path = Path(value)
    if is_artifact(path):
        return open_artifact(path, verify=False).facts
    if (path / "config.json").is_file():
        return model_facts(path)
    if (path / "tokenizer.json").is_file():
        return Facts("tokenizer")
    if path.exists() or _matches(value):
        return Facts("file", {"suffix": "".join(path.suffixes)})
    raise FileNotFoundError(value)


def model_facts(path: Path) -> Facts:
    """Facts of a Hugging Face model directory, from its JSON files alone."""
    from llmkit.model.facts import read_model_facts

    settings = path / "tokenizer_config.json"
    chat = (path / "chat_template.jinja").is_file() or (settings.is_file() and "chat_template" in settings.read_text())
    return Facts("model", {**read_model_facts(path), "chat_template": chat})


def _matches(pattern: str) -> list[Path]:
    return sorted(Path(found) for found in glob.glob(pattern, recursive=True))  # noqa: PTH207 - may be absolute


def resolve(experiment: Experiment, needed: Input, *, verify: bool, digests: DigestCache, place: str) -> ResolvedInput:
    """Find one input of a stage whose upstream stages are done.

    Args:
        experiment: the experiment.
        needed: the place that names the input.
        verify: whether every file of an artifact is checked against its manifest.
        digests: remembered digests of plain files.
        place: where the input is named, for messages.

    Raises:
        LLMKitError: the input is not there or damaged.
    """
    value = needed.value
    if value in experiment.stages:
        return _artifact(needed, stage_directory(experiment, value), verify)
    if value.startswith(PREFIX):
        path = download_model(value.removeprefix(PREFIX), place)
        return ResolvedInput(needed.key, value, path, path.name, model_facts(path))
    if is_url(value):
        return ResolvedInput(needed.key, value, Path(value), _listing_digest(value, place), _outside(value))
    path = Path(value)
    if is_artifact(path):
        return _artifact(needed, path, verify)
    facts = _outside(value) if path.exists() or _matches(value) else None
    if facts is None:
        raise ArtifactError(f"there is no file or folder `{value}`.", where=place)
    if path.exists():
        return ResolvedInput(needed.key, value, path, digests.digest(path), facts)
    digest = sha256_json([[str(found), digests.digest(found)] for found in _matches(value)])
    return ResolvedInput(needed.key, value, path, digest, facts)


def _listing_digest(url: str, place: str) -> str:
    """What changes when files at a URL do: names, sizes, times of change or ETags; the bytes stay where they are."""
    try:
        listed = [(file.name, file.size, file.version) for file in find_files([url], None)]
    except DataError as error:
        raise DataError(error.message, where=place, hint=error.hint) from None
    return sha256_json(listed)


def _artifact(needed: Input, path: Path, verify: bool) -> ResolvedInput:
    artifact = open_artifact(path, verify=verify)
    return ResolvedInput(needed.key, needed.value, path, artifact.digest, artifact.facts, artifact)
