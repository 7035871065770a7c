"""Running stages: what is up to date, in which order the rest runs, and how a result gets to its place."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml

from llmkit.config.base import Finding
from llmkit.config.experiment import Experiment, StageKind, parse_experiment, static_findings
from llmkit.config.problems import config_error
from llmkit.config.yaml import apply_override, read_yaml
from llmkit.console import format_seconds, say, summary_line, warn
from llmkit.errors import ArtifactError
from llmkit.pipeline.inputs import DigestCache, outside_facts, resolve, run_directory, stage_directory
from llmkit.pipeline.kinds import KINDS
from llmkit.store.artifact import Artifact, is_artifact, open_artifact
from llmkit.store.files import sha256_json, write_text_atomic
from llmkit.store.stage import Context, Outcome, ResolvedInput
from llmkit.store.workspace import StageIdentity, partial_directory, workspace
from llmkit.train.config import TrainConfig
from llmkit.train.launch import Ranks

DIGESTS = ".digests.json"
_NAP = 0.5
State = Literal["up to date", "missing", "interrupted", "out of date", "waiting"]


def load_experiment(
    path: str | Path, overrides: Iterable[str] = (), kinds: Mapping[str, StageKind] = KINDS
) -> Experiment:
    """Read a config, apply `dotted.key=value` overrides, and check its shape.

    Raises:
        ConfigError: naming everything that is wrong, with file, line and dotted key.
    """
    source = read_yaml(path)
    for override in overrides:
        apply_override(source, override)
    return parse_experiment(source, kinds)


def stage_seed(experiment: Experiment, name: str) -> int:
    """The stage's own seed: the one written, or one derived from the experiment's seed and the stage's name."""
    written = experiment.stages[name].seed
    if written is not None:
        return written
    text = f"{experiment.settings.seed}/{name}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def raise_errors(experiment: Experiment, findings: Iterable[tuple[str, Finding]]) -> None:
    """Print the warnings among the findings and raise one error that names all the errors.

    Raises:
        ConfigError: there is an error among them.
    """
    errors = []
    for name, finding in findings:
        place = experiment.problem_place(name, finding.key)
        if finding.severity == "error":
            errors.append((place, finding))
        else:
            warn(f"{experiment.source.where(place)}: {finding.message} {finding.hint or ''}".rstrip())
    if errors:
        raise config_error(experiment.source, errors)


@dataclass(frozen=True)
class StageState:
    """How a stage stands: its state, and its digest where its inputs are known."""

    name: str
    kind: str
    state: State
    digest: str | None = None


class Pipeline:
    """An experiment together with what of it stands on disk.

    Args:
        experiment: settings.
        ranks: the processes that torchrun has started; None for this one alone. Rank 0 looks after what stands on disk
            and does the stages that train nothing; the others take part in training.
        shard: number of this process, from 1, and count of those that a job scheduler has started to share the work;
            None for one alone. The first one writes artifacts, the others do their part of the tasks.
    """

    def __init__(
        self, experiment: Experiment, ranks: Ranks | None = None, shard: tuple[int, int] | None = None
    ) -> None:
        self.experiment, self.ranks, self.shard = experiment, ranks, shard
        self.directory = run_directory(experiment)
        self._digests = DigestCache(self.directory / DIGESTS)

    # ---- what stands on disk ----

    def identity(self, name: str, inputs: Mapping[str, ResolvedInput]) -> StageIdentity:
        """What stage `name` is about to make from the given inputs."""
        config, kind = self.experiment.stages[name], self.experiment.kinds[name]
        dumped = config.model_dump(mode="json")
        effective = {key: value for key, value in dumped.items() if key not in config.without_effect}
        digest = sha256_json(
            {
                "kind": kind.name,
                "version": kind.version,
                "seed": stage_seed(self.experiment, name),
                "config": effective,
                "environment": dict(config.environment()),
                "inputs": {key: found.digest for key, found in inputs.items()},
            }
        )
        described = {
            key: {"value": found.value, "path": str(found.path), "digest": found.digest}
            for key, found in inputs.items()
        }
        return StageIdentity(kind.name, name, digest, dumped, described)

    def inputs(self, name: str, *, verify: bool) -> dict[str, ResolvedInput]:
        """The inputs of a stage whose upstream stages are done, by dotted key."""
        return {
            needed.key: resolve(
                self.experiment, needed, verify=verify, digests=self._digests, place=self.where(name, needed.key)
            )
            for needed in self.experiment.stages[name].inputs()
        }

    def available_inputs(self, name: str) -> dict[str, ResolvedInput]:
        """Those inputs of a stage that are there already, unverified: what `check` can look into."""
        found = {}
        for needed in self.experiment.stages[name].inputs():
            place = stage_directory(self.experiment, needed.value)
            if needed.value in self.experiment.stages and not is_artifact(place):
                continue
            found[needed.key] = resolve(
                self.experiment, needed, verify=False, digests=self._digests, place=self.where(name, needed.key)
            )
        return found

    def state(self, name: str, upstream: Mapping[str, StageState]) -> StageState:
        """How one stage stands, given how the stages before it stand."""
        kind = self.experiment.kinds[name].name
        place = stage_directory(self.experiment, name)
        if any(upstream[needed].state != "up to date" for needed in self.experiment.dependencies(name)):
            return StageState(name, kind, "waiting")
        digest = self.identity(name, self.inputs(name, verify=False)).digest
        if is_artifact(place):
            try:
                if open_artifact(place, verify=False).manifest.stage_digest == digest:
                    return StageState(name, kind, "up to date", digest)
            except ArtifactError as error:
                warn(f"{name} is made anew: {error}")
            return StageState(name, kind, "out of date", digest)
        interrupted = partial_directory(place, digest).exists()
        return StageState(name, kind, "interrupted" if interrupted else "missing", digest)

    def states(self) -> dict[str, StageState]:
        """How every stage stands, in dependency order."""
        found: dict[str, StageState] = {}
        for name in self.experiment.stages:
            found[name] = self.state(name, found)
        return found

    # ---- work ----

    def where(self, name: str, key: str = "") -> str:
        """Place of a stage's dotted key in the config, for messages."""
        return self.experiment.source.where(self.experiment.problem_place(name, key))

    def closure(self, names: Iterable[str]) -> list[str]:
        """The stages named and all they depend on, in dependency order."""
        wanted: set[str] = set()

        def add(name: str) -> None:
            if name not in wanted:
                wanted.add(name)
                for needed in self.experiment.dependencies(name):
                    add(needed)

        for name in names:
            add(name)
        return [name for name in self.experiment.stages if name in wanted]

    def run(self, names: Iterable[str] | None = None, *, with_dependencies: bool = True) -> list[StageState]:
        """Run the stages that are not up to date.

        Args:
            names: the stages wanted; all by default.
            with_dependencies: whether stages before them run as well; otherwise they must be up to date.

        Returns:
            the state that each stage was found in, in the order looked at; on ranks other than 0 none.

        Raises:
            LLMKitError: a mistake that the user can mend, or an interruption; finished stages stay finished.
        """
        if self.ranks is not None and not self.ranks.is_main:
            self._follow(self.ranks)
            return []
        wanted = list(names) if names is not None else list(self.experiment.stages)
        order = self.closure(wanted)
        raise_errors(self.experiment, self.findings(deep=False))
        if self.is_first:
            self._write_run_file()
        found: list[StageState] = []
        known: dict[str, StageState] = {}
        for name in order:
            state = self.state(name, known)
            found.append(state)
            if state.state == "up to date":
                say(f"{name}: up to date")
            elif name not in wanted and not with_dependencies:
                raise ArtifactError(
                    f"the stage `{name}` is {state.state}, and {', '.join(wanted)} needs it.",
                    where=self.where(name),
                    hint=f"`llmkit run --config {self.experiment.source.name}` runs every stage that is needed.",
                )
            elif self.is_first:
                self._run_stage(name, state)
            else:
                self._share_stage(name)
                if any(name in self.closure([later]) for later in order[order.index(name) + 1 :]):
                    self._wait_for(name, known)
            known[name] = replace(state, state="up to date")
        if self.is_first:
            self._digests.save()
        if self.ranks is not None:
            self.ranks.tell(None)
        return found

    def _follow(self, ranks: Ranks) -> None:
        """Take part in the stages that rank 0 says, until it says that there are no more."""
        while (told := ranks.hear()) is not None:
            name = told["stage"]
            # Rank 0 has read all files and written their digests down.
            self._digests = DigestCache(self.directory / DIGESTS)
            inputs = self.inputs(name, verify=False)
            context = replace(self.context(name, Path(told["directory"]), inputs), is_main=False)
            self.experiment.kinds[name].module().run(self.experiment.stages[name], context)

    def _run_stage(self, name: str, state: StageState) -> None:
        config, kind = self.experiment.stages[name], self.experiment.kinds[name]
        place = stage_directory(self.experiment, name)
        started = time.monotonic()
        inputs = self.inputs(name, verify=True)
        identity = self.identity(name, inputs)
        say(f"{name}: {'goes on where it was stopped' if state.state == 'interrupted' else 'starts'}")
        for other in sorted(place.parent.glob(f"{name}.partial-*")):
            if other != partial_directory(place, identity.digest):
                say(f"{name}: unfinished work with other settings or inputs is kept in {other}")
        module = kind.module()
        with workspace(place, identity) as work:
            if isinstance(work, Artifact):
                say(f"{name}: was finished and is now in its place")
                return
            context = self.context(name, work.directory, inputs)
            raise_errors(self.experiment, [(name, finding) for finding in module.check(config, context)])
            if self.ranks is not None and isinstance(config, TrainConfig):
                self._digests.save()
                self.ranks.tell({"stage": name, "directory": str(work.directory)})
            outcome: Outcome = module.run(config, context)
            seconds = time.monotonic() - started
            work.commit(replace(outcome, summary={"seconds": round(seconds, 3), **outcome.summary}))
        say(f"{name}: done in {format_seconds(seconds)}; {summary_line(outcome.summary)}")

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes artifacts; one of several shards that is not does tasks alone."""
        return self.shard is None or self.shard[0] == 1

    def _share_stage(self, name: str) -> None:
        """Do this shard's part of a stage; nothing, where its work is not divided."""
        assert self.shard is not None
        share = getattr(self.experiment.kinds[name].module(), "share", None)
        if share is not None:
            say(f"{name}: shard {self.shard[0]} of {self.shard[1]} starts")
            # The first one compares every file with its digest.
            inputs = self.inputs(name, verify=False)
            share(self.experiment.stages[name], self.context(name, stage_directory(self.experiment, name), inputs))
            say(f"{name}: shard {self.shard[0]} of {self.shard[1]} is done; shard 1 writes the artifact")

    def _wait_for(self, name: str, known: Mapping[str, StageState]) -> None:
        """Return when the first shard has written a stage that a later one needs."""
        say(f"{name}: waiting for shard 1 to write it")
        while self.state(name, known).state != "up to date":
            time.sleep(_NAP)

    # ---- checks ----

    def findings(self, *, deep: bool) -> list[tuple[str, Finding]]:
        """What is wrong with the experiment, by stage.

        Args:
            deep: whether the inputs that are there are opened as well (data, templates, masks); otherwise only the
                settings and small JSON files are looked at, and torch is not imported.
        """
        facts, missing = outside_facts(self.experiment)
        found = missing + static_findings(self.experiment, facts)
        broken = {name for name, finding in found if finding.severity == "error"}
        if deep and not broken:
            for name, config in self.experiment.stages.items():
                context = self.context(name, self.directory / name, self.available_inputs(name))
                module = self.experiment.kinds[name].module()
                found += [(name, finding) for finding in module.check(config, context)]
        return found

    def _write_run_file(self) -> None:
        settings = self.experiment.settings.model_dump(mode="json")
        settings["stages"] = {name: config.model_dump(mode="json") for name, config in self.experiment.stages.items()}
        self.directory.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120)
        target = self.directory / "run.yaml"
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            write_text_atomic(target, text)

    def context(self, name: str, directory: Path, inputs: Mapping[str, ResolvedInput]) -> Context:
        """The context in which stage `name` works."""
        return Context(name, stage_seed(self.experiment, name), directory, inputs, self.where(name), shard=self.shard)
