"""An experiment: one YAML file, its stages, and the order in which they depend on each other."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from llmkit.config.base import Config, Facts, Finding, Input, StageConfig, nearest
from llmkit.config.problems import config_error, findings_of
from llmkit.config.yaml import KeyPath, Source

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")


@dataclass(frozen=True)
class StageKind:
    """A kind of stage: what it is called, where its settings and its work are defined.

    Args:
        name: value of the key `stage`.
        command: the command that runs stages of this kind alone (`llmkit <command>`).
        config: "module:Class" of its settings, which import no torch.
        implementation: module with `run(config, context) -> Outcome` and, as far as it has them,
            `check(config, context) -> findings` and `plan(config, inputs) -> Plan`.
        version: raised when the same settings and inputs come to give another result: old artifacts are made anew.
    """

    name: str
    command: str
    config: str
    implementation: str
    version: int

    def config_class(self) -> type[StageConfig]:
        """The settings class."""
        module, _, name = self.config.partition(":")
        found: type[StageConfig] = getattr(importlib.import_module(module), name)
        return found

    def module(self) -> Any:
        """The module that does the work (may import torch)."""
        return importlib.import_module(self.implementation)


class ExperimentConfig(Config):
    """The keys of an experiment beside its stages."""

    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; artifacts go to `<runs_dir>/<run>/<stage name>/`."""
    seed: int = Field(default=1337, ge=0, lt=2**32)
    """Seed from which every stage's seed is derived."""
    runs_dir: str = Field(default="runs", min_length=1)
    """Folder of all runs, relative to the working directory."""
    stages: dict[str, Any] = Field(min_length=1)
    """The stages by name; a name is a directory, and its kind where `stage` is left out."""


@dataclass(frozen=True)
class Experiment:
    """A parsed experiment.

    Args:
        source: the YAML with positions.
        settings: the keys beside the stages.
        stages: settings of each stage by name, in dependency order.
        kinds: the kind of each stage by name.
    """

    source: Source
    settings: ExperimentConfig
    stages: Mapping[str, StageConfig]
    kinds: Mapping[str, StageKind]

    def dependencies(self, name: str) -> list[str]:
        """Names of the stages that stage `name` reads, without repeats, in the order of its inputs."""
        return list(dict.fromkeys(i.value for i in self.stages[name].inputs() if i.value in self.stages))

    def problem_place(self, name: str, key: str) -> KeyPath:
        """Key path in the file of a dotted key of a stage."""
        parts = [int(part) if part.isdigit() else part for part in key.split(".") if part]
        return ("stages", name, *parts)


def parse_experiment(source: Source, kinds: Mapping[str, StageKind]) -> Experiment:
    """Check the shape of every stage and put the stages in dependency order.

    Raises:
        ConfigError: naming every key that is unknown, missing, of the wrong type or out of range, every stage of no
            known kind, and stages that depend on themselves.
    """
    try:
        settings = ExperimentConfig.model_validate(source.data)
    except ValidationError as error:
        raise config_error(source, findings_of(error, source.data, ())) from None
    problems: list[tuple[KeyPath, Finding]] = []
    stages: dict[str, StageConfig] = {}
    stage_kinds: dict[str, StageKind] = {}
    for name, raw in settings.stages.items():
        place: KeyPath = ("stages", name)
        kind = _kind_of(name, raw, kinds, place, problems)
        if kind is None:
            continue
        values = {**raw, "stage": kind.name} if raw is not None else {"stage": kind.name}
        try:
            stages[name] = kind.config_class().model_validate(values)
            stage_kinds[name] = kind
        except ValidationError as error:
            problems += findings_of(error, values, place)
    if problems:
        raise config_error(source, problems)
    stages = _with_measured(stages)
    order = _dependency_order(stages, source)
    return Experiment(
        source, settings, {name: stages[name] for name in order}, {name: stage_kinds[name] for name in order}
    )


def _kind_of(
    name: str,
    raw: Any,
    kinds: Mapping[str, StageKind],
    place: KeyPath,
    problems: list[tuple[KeyPath, Finding]],
) -> StageKind | None:
    if not _NAME.match(name):
        problems.append((place, Finding(f"`{name}` is no name for a stage.", hint="Use letters, digits, - and _.")))
        return None
    if raw is not None and not isinstance(raw, dict):
        problems.append((place, Finding(f"a stage is a mapping of keys to values, not {raw!r}.")))
        return None
    written = (raw or {}).get("stage", name)
    if isinstance(written, str) and written in kinds:
        return kinds[written]
    guess = nearest(str(written), kinds)
    choices = f"Kinds of stage: {', '.join(kinds)}."
    hint = f"Did you mean `{guess}`? {choices}" if guess else choices
    if raw is not None and "stage" in raw:
        problems.append(((*place, "stage"), Finding(f"{written!r} is no kind of stage.", hint=hint)))
    else:
        problems.append(
            (
                place,
                Finding(f"the name `{name}` is no kind of stage, so the key `stage` must say its kind.", hint=hint),
            )
        )
    return None


def _with_measured(stages: Mapping[str, StageConfig]) -> dict[str, StageConfig]:
    """The stages, with what is measured on in the place of the names of stages that measure.

    A stage does not get what is made of its own result: it holds that out itself, and would depend on itself.
    """
    measured = {name: values for name, config in stages.items() if (values := config.measured_on())}

    def is_made_of(value: str, name: str, seen: set[str]) -> bool:
        if value == name:
            return True
        if value not in stages or value in measured or value in seen:
            return False
        seen.add(value)
        return any(is_made_of(used.value, name, seen) for used in stages[value].inputs())

    return {
        name: config.with_measured(
            {other: [v for v in values if not is_made_of(v, name, set())] for other, values in measured.items()}
        )
        for name, config in stages.items()
    }


def _dependency_order(stages: Mapping[str, StageConfig], source: Source) -> list[str]:
    order: list[str] = []
    state: dict[str, str] = {}

    def visit(name: str, chain: list[str]) -> None:
        if state.get(name) == "done":
            return
        if state.get(name) == "open":
            loop = [*chain[chain.index(name) :], name]
            text = "the stage depends on itself" if len(loop) == 2 else "the stages depend on each other in a circle"
            raise config_error(source, [(("stages", name), Finding(f"{text}: {' -> '.join(loop)}."))])
        state[name] = "open"
        for used in stages[name].inputs():
            if used.value in stages:
                visit(used.value, [*chain, name])
        state[name] = "done"
        order.append(name)

    for name in stages:
        visit(name, [])
    return order


def chain_facts(experiment: Experiment, outside: Mapping[str, Facts]) -> dict[str, dict[str, Facts]]:
    """Facts of every stage's inputs, by stage and dotted key, as they travel along the chain.

    Args:
        experiment: the parsed experiment.
        outside: facts of the inputs that are no stages, by the value written in the config.
    """
    known: dict[str, Facts] = {}
    found: dict[str, dict[str, Facts]] = {}
    for name, config in experiment.stages.items():
        facts = {
            needed.key: known.get(needed.value) or outside.get(needed.value) or Facts("unknown")
            for needed in config.inputs()
        }
        found[name] = facts
        known[name] = config.facts(facts)
    return found


def static_findings(experiment: Experiment, outside: Mapping[str, Facts]) -> list[tuple[str, Finding]]:
    """What is wrong with a chain of stages before any of it has run: pairs of stage name and finding, in its order."""
    found: list[tuple[str, Finding]] = []
    for name, facts in chain_facts(experiment, outside).items():
        config = experiment.stages[name]
        wrong = [
            _wrong_kind(needed, facts[needed.key])
            for needed in config.inputs()
            if facts[needed.key].kind not in ("unknown", *needed.kinds)
        ]
        found += [(name, finding) for finding in wrong or config.check(facts)]
    return found


def _wrong_kind(needed: Input, given: Facts) -> Finding:
    wanted = " or ".join(needed.kinds)
    return Finding(f"`{needed.value}` gives {given.kind}, and {wanted} is wanted here.", key=needed.key)
