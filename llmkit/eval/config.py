"""Settings of the stage `eval`. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llmkit.config.base import Config, Facts, Finding, Input, StageConfig
from llmkit.eval.tasks.config import GenerateTask, TaskConfig, check_task


class BootstrapConfig(Config):
    """How the intervals are made: percentiles of the metric over resamples of the examples."""

    resamples: int = Field(default=1000, ge=100, le=100_000)
    """Resamples with replacement."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Probability mass between the bounds."""


class EvalConfig(StageConfig):
    """Several models measured on the same tasks."""

    kind: ClassVar[str] = "eval"
    stage: Literal["eval"] = "eval"
    """Kind of the stage."""
    models: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    """Stages, folders or `hf:owner/name` of the models, in the order of the tables."""
    tasks: list[TaskConfig] = Field(min_length=1)
    """What they are measured on."""
    batch_size: int = Field(default=16, ge=1)
    """Sequences that go through a model at once."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Number format of weights and matrix products. auto: bf16 on a GPU, fp32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    bootstrap: BootstrapConfig = BootstrapConfig()
    """How the intervals are made."""
    samples: int = Field(default=20, ge=0)
    """Examples of each task that are written to `samples.jsonl` with every model's answer."""

    @model_validator(mode="after")
    def _names_differ(self) -> EvalConfig:
        for what, names in (("model", self.models), ("task", [task.title for task in self.tasks])):
            repeated = next((name for index, name in enumerate(names) if name in names[:index]), None)
            if repeated is not None:
                hint = "; give tasks of one kind a `name` each" if what == "task" else ""
                raise PydanticCustomError(
                    "repeated", "two {what}s are called `{name}`{hint}", {"what": what, "name": repeated, "hint": hint}
                )
        return self

    def inputs(self) -> list[Input]:
        """The models, then each task's data and reward model."""
        found = [Input(f"models.{index}", value, ("model",)) for index, value in enumerate(self.models)]
        for index, task in enumerate(self.tasks):
            found.append(Input(f"tasks.{index}.data", task.data, task.data_kinds))
            if isinstance(task, GenerateTask) and task.reward_model is not None:
                found.append(Input(f"tasks.{index}.reward_model", task.reward_model, ("model",)))
        return found

    def measured_on(self) -> list[str]:
        """The data of all tasks."""
        return [task.data for task in self.tasks]

    def facts(self, inputs: Mapping[str, Facts]) -> Facts:
        """Results have no properties."""
        return Facts("results")

    def check(self, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """Heads, contexts, splits and formats of every task against what is known of its inputs."""
        models = {value: inputs[f"models.{index}"] for index, value in enumerate(self.models)}
        for index, task in enumerate(self.tasks):
            judge = inputs.get(f"tasks.{index}.reward_model")
            for finding in check_task(task, models, inputs[f"tasks.{index}.data"], judge):
                yield Finding(finding.message, f"tasks.{index}.{finding.key}", finding.hint, finding.severity)
