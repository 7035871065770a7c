"""The JSON Schema of an experiment, for completion and checking in editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from llmkit.config.experiment import ExperimentConfig, StageKind


def experiment_schema(kinds: Mapping[str, StageKind]) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of an experiment with stages of the given kinds.

    A stage's kind is its key `stage` or, where that is left out, its name: one condition for each kind.
    """
    classes = {name: kind.config_class() for name, kind in kinds.items()}
    models = [(cls, "validation") for cls in (*classes.values(), ExperimentConfig)]
    references, definitions = models_json_schema(models, ref_template="#/$defs/{model}")  # type: ignore[arg-type]
    definitions = definitions["$defs"]
    experiment = definitions.pop(references[(ExperimentConfig, "validation")]["$ref"].rsplit("/", 1)[-1])
    named: dict[str, Any] = {}
    conditions: list[dict[str, Any]] = []
    for name, cls in classes.items():
        reference = references[(cls, "validation")]
        model = definitions[reference["$ref"].rsplit("/", 1)[-1]]
        model["required"] = [key for key in model.get("required", []) if key != "stage"]
        model["properties"]["stage"] = {"const": name, "description": "Kind of the stage."}
        conditions.append({"if": {"properties": {"stage": {"const": name}}, "required": ["stage"]}, "then": reference})
        named[name] = {
            "if": {"type": "object", "required": ["stage"]},
            "then": {"$ref": "#/$defs/AnyStage"},
            "else": reference,
        }
    definitions["AnyStage"] = {
        "type": "object",
        "required": ["stage"],
        "properties": {"stage": {"enum": list(classes), "description": "Kind of the stage."}},
        "allOf": conditions,
    }
    experiment["properties"]["stages"] = {
        "type": "object",
        "minProperties": 1,
        "description": "The stages by name; a name is a directory, and its kind where `stage` is left out.",
        "properties": named,
        "additionalProperties": {"$ref": "#/$defs/AnyStage"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llmkit experiment",
        **{key: value for key, value in experiment.items() if key != "title"},
        "$defs": dict(sorted(definitions.items())),
    }
