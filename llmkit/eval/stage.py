"""The stage `eval`: models, one at a time, on every task; then metrics with intervals, and samples.

What a model does on a task is kept in `measurements/` as soon as it is done, so an interrupted evaluation goes on with
the next pair. Metrics are computed from these files at the end, whether they were made now or before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from llmkit.config.base import Facts, Finding
from llmkit.console import progress
from llmkit.errors import LLMKitError
from llmkit.eval.config import EvalConfig
from llmkit.eval.metrics.base import Bootstrap
from llmkit.eval.models import Candidate, Machine, Subject, candidates
from llmkit.eval.results import RESULTS, SAMPLES, write_results
from llmkit.eval.tasks.base import Begin, Measured, Measurement, Settings, Task
from llmkit.eval.tasks.config import BaseTask, wanted_models
from llmkit.eval.tasks.registry import TASKS
from llmkit.store.files import sha256_json, write_json_atomic
from llmkit.store.stage import Context, Outcome, ResolvedInput

MEASUREMENTS = "measurements"


def check(config: EvalConfig, context: Context) -> list[Finding]:
    """Open the data and tokenizers that are there: malformed rows, prompts that are too long, unknown classes."""
    found = []
    if config.device == "cuda" and not torch.cuda.is_available():
        found.append(Finding("there is no GPU that torch can use.", key="device"))
    evaluation = Evaluation(config, context)
    if all(needed.key in context.inputs for needed in config.inputs()):
        # Now also of models whose properties were not known before they were fetched.
        found += config.check({key: evaluation.facts(given) for key, given in context.inputs.items()})
    if found:
        return found
    for index in range(len(config.tasks)):
        if f"tasks.{index}.data" in context.inputs:
            try:
                inner = evaluation.task(index).findings()
            except LLMKitError as error:
                inner = [Finding(str(error), key="data")]
            found += [replace(finding, key=f"tasks.{index}.{finding.key}") for finding in inner]
    return found


def run(config: EvalConfig, context: Context) -> Outcome:
    """Write `results.json`, `samples.jsonl` and, as by-products, `measurements/`."""
    started = time.monotonic()
    evaluation = Evaluation(config, context)
    tasks = [evaluation.task(index) for index in range(len(config.tasks))]
    for model in evaluation.models:
        evaluation.measure(model, tasks)
    evaluation.judge(tasks)
    measured = [evaluation.measured(task) for task in tasks]
    write_results(
        context.directory,
        evaluation.results(tasks, measured),
        [row for task, found in zip(tasks, measured, strict=True) for row in task.samples(found, config.samples)],
    )
    return Outcome([RESULTS, SAMPLES], Facts("results"), evaluation.cost(time.monotonic() - started))


class Evaluation:
    """The models and tasks of a stage, and the measurements made so far."""

    def __init__(self, config: EvalConfig, context: Context) -> None:
        self.config = config
        self.context = context
        sources = [context.inputs.get(f"models.{index}") for index in range(len(config.models))]
        self.models = candidates([source for source in sources if source is not None])
        self._done: dict[Path, Measurement] = {}
        self._seconds_before = 0.0

    @cached_property
    def machine(self) -> Machine:
        """Where models compute."""
        return Machine.choose(self.config.device, self.config.precision)

    @cached_property
    def settings(self) -> Settings:
        """What all tasks share."""
        given = self.config.bootstrap
        bootstrap = Bootstrap(given.resamples, given.confidence, self.context.seed)
        return Settings(self.context.seed, self.config.batch_size, self.machine.precision, bootstrap)

    def facts(self, source: ResolvedInput) -> Facts:
        """What is known of an input, of a model by its own files."""
        model = next((model for model in self.models if model.source is source), None)
        return source.facts if model is None else model.facts

    def task(self, index: int) -> Task[Any]:
        """A task with its examples read.

        Raises:
            LLMKitError: the examples cannot be read.
        """
        config = self.config.tasks[index]
        judge = self.context.inputs.get(f"tasks.{index}.reward_model")
        return TASKS[config.kind](
            config,
            self.context.inputs[f"tasks.{index}.data"],
            self.settings,
            self._wanted(config)[0],
            None if judge is None else candidates([judge])[0],
        )

    def measure(self, model: Candidate, tasks: Sequence[Task[Any]]) -> None:
        """Measure a model on those of the tasks that want it and have not been measured before."""
        subject: Subject | None = None
        for task in tasks:
            place, digest = self._place(task, model.label), self._digest(task, model)
            if any(wanted is model for wanted in task.models) and not self._restore(place, digest):
                subject = subject or model.open(self.machine)
                self._keep(place, digest, f"{model.label}, {task.title}", partial(task.measure, subject))

    def judge(self, tasks: Sequence[Task[Any]]) -> None:
        """Have the answers scored by the tasks' reward models, tasks of one reward model after each other."""
        judge: Subject | None = None
        judges = [(task, task.judge) for task in tasks if task.judge is not None]
        for task, wanted in sorted(judges, key=lambda pair: pair[1].source.value):
            place = self._place(task, wanted.label, "judge")
            answers = {model.label: self._of(task, model.label) for model in task.models}
            digest = sha256_json([self._digest(task, wanted), {label: a.records for label, a in answers.items()}])
            if not self._restore(place, digest):
                if judge is None or judge.candidate.source.value != wanted.source.value:
                    judge = wanted.open(self.machine)
                work = partial(task.judge_answers, judge, answers)
                self._keep(place, digest, f"{wanted.label}, {task.title}", work)

    def measured(self, task: Task[Any]) -> Measured:
        """All measurements of a task."""
        judged = None if task.judge is None else self._of(task, task.judge.label, "judge")
        return Measured({model.label: self._of(task, model.label) for model in task.models}, judged)

    def results(self, tasks: Sequence[Task[Any]], measured: Sequence[Measured]) -> dict[str, Any]:
        """The contents of `results.json`."""
        pairs = list(zip(tasks, measured, strict=True))
        return {
            "models": {model.label: _description(model) for model in self.models},
            "results": [asdict(result) for task, found in pairs for result in task.results(found)],
            "baselines": [asdict(result) for task, found in pairs for result in task.baselines(found)],
            "left_out": [
                {"task": task.title, "model": model.label, "reason": reason}
                for task in tasks
                for model, reason in self._wanted(task.config)[1]
            ],
            "interval": asdict(self.settings.bootstrap),
        }

    def cost(self, seconds: float) -> dict[str, Any]:
        """Seconds and tokens of this attempt and of what earlier ones left.

        Args:
            seconds: of this attempt.
        """
        tokens = sum(found.tokens for found in self._done.values())
        return {"seconds": round(self._seconds_before + seconds, 3), "tokens": tokens}

    def _wanted(self, config: BaseTask) -> tuple[list[Candidate], list[tuple[Candidate, str]]]:
        """The models that a task measures, and those that it leaves out with the reason."""
        by_value = {model.source.value: model for model in self.models}
        chosen, left = wanted_models(config, {value: model.facts for value, model in by_value.items()})
        return [by_value[value] for value in chosen], [(by_value[value], reason) for value, reason in left.items()]

    def _of(self, task: Task[Any], label: str, role: str = "model") -> Measurement:
        return self._done[self._place(task, label, role)]

    def _place(self, task: Task[Any], label: str, role: str = "model") -> Path:
        name = sha256_json([task.title, label, role])[:8]
        readable = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{task.title}.{label}")
        return self.context.directory / MEASUREMENTS / f"{readable}.{name}.json"

    def _digest(self, task: Task[Any], model: Candidate) -> str:
        """Digest of all that a measurement depends on."""
        return sha256_json(
            {
                "task": task.config.model_dump(mode="json"),
                "data": task.data.digest,
                "model": model.source.digest,
                "models": [other.source.digest for other in task.models],
                "seed": self.context.seed,
                "batch_size": self.config.batch_size,
                "precision": self.machine.precision,
                "device": self.machine.device.type,
            }
        )

    def _restore(self, place: Path, digest: str) -> bool:
        """Take a measurement that an interrupted attempt made, if it is there."""
        if not place.is_file():
            return False
        saved = json.loads(place.read_text(encoding="utf-8"))
        if saved["digest"] != digest:
            return False
        self._done[place] = Measurement(saved["records"], saved["how"], saved["tokens"])
        self._seconds_before += saved["seconds"]
        return True

    def _keep(self, place: Path, digest: str, label: str, work: Callable[[Begin], Measurement]) -> None:
        """Make a measurement and write it."""
        started = time.monotonic()
        with _begin(label) as begin:
            made = work(begin)
        seconds = round(time.monotonic() - started, 3)
        place.parent.mkdir(exist_ok=True)
        write_json_atomic(place, {"digest": digest, "seconds": seconds, **asdict(made)})
        self._done[place] = made


@contextmanager
def _begin(label: str) -> Iterator[Begin]:
    """A progress display that starts when the number of units is known."""
    with ExitStack() as stack:
        yield lambda total: stack.enter_context(progress(label, total=total)).advance


def _description(model: Candidate) -> Mapping[str, Any]:
    known = {name: model.properties[name] for name in ("family", "head", "parameters")}
    # As written in the config: where a run stands is no part of its results.
    return {"source": model.source.value, "digest": model.source.digest, **known}
