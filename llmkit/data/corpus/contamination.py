"""The task `index`: the n-grams of the texts that models are measured on, of which decontamination makes a measure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkit.config.base import Facts
from llmkit.data.corpus.measuring import Measure
from llmkit.data.decontamination.config import DecontaminationConfig
from llmkit.data.decontamination.filter import Decontamination
from llmkit.data.decontamination.index import write_index
from llmkit.data.execution.engine import Engine
from llmkit.data.execution.tasks import Task, Work
from llmkit.store.artifact import is_artifact, open_artifact
from llmkit.store.stage import Context, ResolvedInput

VERSION = 1


def decontamination_measure(engine: Engine, config: DecontaminationConfig, context: Context) -> Measure:
    """Decontamination as a filter like others, once its index is made.

    Args:
        engine: does the task.
        config: its settings.
        context: of the stage, with its inputs.

    Raises:
        DataError: a file cannot be read, or none of its texts is long enough.
    """
    found = [context.inputs[needed.key] for needed in config.inputs("decontamination")]
    task = Task(
        "index",
        f"{__name__}:index",
        {
            "measuring": dict(Decontamination(config, Path()).measuring),
            "against": list(config.against),
            "inputs": [[item.value, item.digest] for item in found],
        },
        places={"inputs": [_as_json(item, context.place(item.key)) for item in found]},
        version=VERSION,
        label=", ".join(config.against),
    )
    (index,) = engine.run([task], "reading what models are measured on")
    return Measure(Decontamination(config, index.path), config, inputs={"index": index.key})


def index(work: Work) -> None:
    """Write the index."""
    found = [_resolved(item) for item in work.places["inputs"]]
    write_index(work.settings["against"], found, work.settings["measuring"], work.output)


def _as_json(found: ResolvedInput, key: str) -> dict[str, Any]:
    return {
        "key": key,
        "value": found.value,
        "path": str(found.path),
        "digest": found.digest,
        "kind": found.facts.kind,
        "facts": dict(found.facts.properties),
    }


def _resolved(said: Mapping[str, Any]) -> ResolvedInput:
    path = Path(said["path"])
    artifact = open_artifact(path, verify=False) if is_artifact(path) else None
    facts = Facts(said["kind"], said["facts"])
    return ResolvedInput(said["key"], said["value"], path, said["digest"], facts, artifact)
