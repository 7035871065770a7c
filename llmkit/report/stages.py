"""The stages of a run as they stand on disk: which are done, which were interrupted, which have not run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llmkit.config.yaml import read_yaml
from llmkit.errors import ArtifactError, LLMKitError
from llmkit.report.files import as_finite, as_mapping, read_object
from llmkit.store.artifact import MANIFEST, is_artifact, open_artifact
from llmkit.store.workspace import STATE

Status = Literal["complete", "out of date", "interrupted", "damaged", "missing"]

RUN_FILE = "run.yaml"
TRAINING = ("pretrain", "finetune", "rlhf")
DATA = ("data", "examples", "tokenizer", "tokens")
# Keys of a stage's settings whose values are never names of other stages, though they may read alike.
_NO_INPUT_KEYS = {
    "stage", "kind", "name", "label", "labels", "algorithm", "family", "head", "task", "metric", "rewards",
}  # fmt: skip


@dataclass(frozen=True)
class StageInput:
    """An input of a stage: its dotted key, the value written, its digest, and the stage it is, where it is one."""

    key: str
    value: str
    digest: str
    stage: str | None


@dataclass(frozen=True)
class Stage:
    """A stage of the run.

    Args:
        name: its name.
        kind: kind of stage ("pretrain"); "unknown" where nothing says it.
        status: complete; out of date (an input has changed since); interrupted; damaged; missing.
        notes: what a reader should know of the status, as sentences.
        directory: where its files are: the artifact, or what an unfinished attempt left; None where there is nothing.
        makes: kind of artifact, where it is finished.
        inputs: its inputs.
        config: its settings.
        facts: properties of the artifact.
        summary: numbers worth showing.
        versions: versions that made it.
        stage_digest: digest of settings, inputs and code version.
        content_digest: digest of the result.
        files: number of files.
        size: their size in bytes.
        modified: when the manifest was written, in seconds since 1970.
    """

    name: str
    kind: str
    status: Status
    notes: tuple[str, ...] = ()
    directory: Path | None = None
    makes: str | None = None
    inputs: tuple[StageInput, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    stage_digest: str = ""
    content_digest: str = ""
    files: int = 0
    size: int = 0
    modified: float | None = None

    @property
    def upstream(self) -> tuple[str, ...]:
        """Names of the stages that it reads, without repeats."""
        return tuple(dict.fromkeys(found.stage for found in self.inputs if found.stage is not None))

    @property
    def seconds(self) -> float | None:
        """How long it took, where that was recorded."""
        return as_finite(self.summary.get("seconds"))

    @property
    def finished(self) -> bool:
        """Whether there is an artifact."""
        return self.status in ("complete", "out of date")


def read_stages(run_directory: Path, settings: Mapping[str, Any]) -> tuple[Stage, ...]:
    """All stages of a run: those of its resolved config in their order, then others that stand in its folder.

    Args:
        run_directory: the run's folder.
        settings: its resolved config; empty where there is none.
    """
    configured = as_mapping(settings.get("stages"))
    folders = [path for path in sorted(run_directory.iterdir()) if ".partial-" not in path.name]
    on_disk = [path.name for path in folders if is_artifact(path)]
    extra = [name for name in on_disk if name not in configured]
    names = [*configured, *extra]
    stages: dict[str, Stage] = {}
    for index, name in enumerate(names):
        if name in on_disk:
            stages[name] = _finished(run_directory / name, names)
        else:
            stages[name] = _unfinished(run_directory, name, as_mapping(configured.get(name)), names, names[:index])
    ordered = _dependency_order(stages)
    for place, name in enumerate(ordered):
        stages[name] = _with_notes(_acyclic(stages[name], ordered[:place]), stages, configured)
    return tuple(stages[name] for name in ordered)


def _dependency_order(stages: Mapping[str, Stage]) -> list[str]:
    order: list[str] = []
    open_stages: set[str] = set()

    def visit(name: str) -> None:
        if name in order or name in open_stages:
            return
        open_stages.add(name)
        for needed in stages[name].upstream:
            visit(needed)
        order.append(name)

    for name in stages:
        visit(name)
    return order


def _acyclic(stage: Stage, before: list[str]) -> Stage:
    """The stage without links to stages that do not come before it, which no pipeline makes but a damaged file may."""
    kept = tuple(found if found.stage in before else replace(found, stage=None) for found in stage.inputs)
    return replace(stage, inputs=kept)


def _finished(place: Path, names: list[str]) -> Stage:
    try:
        manifest = open_artifact(place, verify=False).manifest
    except (ArtifactError, TypeError, ValueError) as error:
        # A manifest with values of other types than the store writes is no less damaged than one cut short.
        what = error.message if isinstance(error, ArtifactError) else f"the manifest cannot be read: {error}."
        raw = read_object(place / MANIFEST)
        return Stage(
            place.name, str(raw.get("stage", "unknown")), "damaged", (what[:1].upper() + what[1:],),
            directory=place, inputs=_inputs(raw.get("inputs"), names), config=as_mapping(raw.get("config")),
        )  # fmt: skip
    return Stage(
        name=place.name,
        kind=str(manifest.stage),
        status="complete",
        notes=("A newer attempt, with other settings or inputs, is not finished.",) if _attempts(place) else (),
        directory=place,
        makes=manifest.kind,
        inputs=_inputs(manifest.inputs, names),
        config=as_mapping(manifest.config),
        facts=as_mapping(manifest.facts),
        summary=as_mapping(manifest.summary),
        versions=as_mapping(manifest.versions),
        stage_digest=str(manifest.stage_digest),
        content_digest=manifest.content_digest,
        files=len(manifest.files),
        size=sum(entry.size for entry in manifest.files),
        modified=(place / MANIFEST).stat().st_mtime,
    )


def _attempts(place: Path) -> list[Path]:
    """Folders of unfinished work on the artifact at `place`, by name."""
    return sorted(path for path in place.parent.glob(f"{place.name}.partial-*") if (path / STATE).is_file())


def _unfinished(run: Path, name: str, config: Mapping[str, Any], names: list[str], earlier: list[str]) -> Stage:
    kind = str(config.get("stage", "unknown"))
    attempts = _attempts(run / name)
    if not attempts:
        found = tuple(StageInput(key, value, "", value) for key, value in _named_stages(config, earlier))
        return Stage(name, kind, "missing", inputs=found, config=config)
    # Of several attempts with differing settings, the one that was worked on last.
    latest = max(attempts, key=lambda path: (path / STATE).stat().st_mtime)
    state = read_object(latest / STATE)
    return Stage(
        name,
        str(state.get("stage", kind)),
        "interrupted",
        ("The work was stopped, or is still going on; what it has written so far is shown.",),
        directory=latest,
        inputs=_inputs(state.get("inputs"), names),
        config=as_mapping(state.get("config")) or config,
        stage_digest=str(state.get("stage_digest", "")),
        modified=(latest / STATE).stat().st_mtime,
    )


def _inputs(raw: Any, names: list[str]) -> tuple[StageInput, ...]:
    found = []
    for key, entry in as_mapping(raw).items():
        value = str(as_mapping(entry).get("value", ""))
        found.append(
            StageInput(key, value, str(as_mapping(entry).get("digest", "")), value if value in names else None)
        )
    return tuple(found)


def _named_stages(value: Any, earlier: list[str], key: str = "") -> Iterator[tuple[str, str]]:
    """Places in settings of a stage that has not run which name one of the stages before it."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in _NO_INPUT_KEYS:
                yield from _named_stages(inner, earlier, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _named_stages(inner, earlier, f"{key}.{index}")
    elif isinstance(value, str) and value in earlier:
        yield key, value


def _with_notes(stage: Stage, stages: Mapping[str, Stage], configured: Mapping[str, Any]) -> Stage:
    """The stage with what a comparison with its inputs and with the resolved config tells of it."""
    if not stage.finished:
        return stage
    notes = list(stage.notes)
    made = {found.stage: found.digest for found in stage.inputs if found.stage is not None}
    changed = [name for name, digest in made.items() if stages[name].finished and stages[name].content_digest != digest]
    stale = [name for name in made if stages[name].status == "out of date"]
    if changed:
        notes.append(f"Made from an earlier version of {' and '.join(changed)}.")
    elif stale:
        notes.append(f"Made from {' and '.join(stale)}, which is out of date.")
    if configured and stage.name not in configured:
        notes.append("Not a stage of the resolved config.")
    now = as_mapping(configured.get(stage.name))
    differing = sorted(key for key in {*now, *stage.config} if now and now.get(key) != stage.config.get(key))
    if differing:
        notes.append(f"Made with other settings than the resolved config has now: {', '.join(differing)}.")
    return replace(stage, status="out of date" if changed or stale else stage.status, notes=tuple(notes))


def read_settings(run_directory: Path) -> tuple[dict[str, Any], str]:
    """The resolved config of a run and its text; both empty where there is none that can be read."""
    file = run_directory / RUN_FILE
    try:
        return dict(read_yaml(file).data), file.read_text(encoding="utf-8")
    except (LLMKitError, OSError, UnicodeDecodeError):
        return {}, ""
