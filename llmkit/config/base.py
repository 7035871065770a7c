"""The base of every settings class, and the contract of a stage's settings.

Settings are pydantic models that forbid unknown keys and convert nothing silently (a quoted number is not a number).
This module and everything named `config.py` import no torch, so that mistakes are reported before it is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name closest to `name`, or None where nothing is close."""
    matches = difflib.get_close_matches(str(name), [str(choice) for choice in valid], n=1, cutoff=0.5)
    return matches[0] if matches else None


class Config(BaseModel):
    """Base of all settings: unknown keys are refused with the nearest known one, types are strict."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            valid = [info.alias or name for name, info in cls.model_fields.items()]
            unknown = [key for key in data if key not in valid]
            if unknown:
                raise PydanticCustomError(
                    "unknown_keys",
                    "unknown key {keys}",
                    {"keys": [str(key) for key in unknown], "valid": valid},
                )
        return data


def differs(settings: Config, name: str) -> bool:
    """Whether a setting is other than its default: to write the default is to say nothing."""
    return bool(getattr(settings, name) != type(settings).model_fields[name].get_default(call_default_factory=True))


@dataclass(frozen=True)
class Finding:
    """Something wrong (`error`) or worth knowing (`warning`) in a configuration or in what it points to.

    Args:
        message: what is wrong, as a sentence.
        key: dotted key below the stage ("model.heads"); empty for the stage as a whole.
        hint: what to do about it, as a sentence.
        severity: an error stops the work, a warning does not.
    """

    message: str
    key: str = ""
    hint: str | None = None
    severity: Literal["error", "warning"] = "error"


@dataclass(frozen=True)
class Facts:
    """What is known of an input before it is opened or even made: its kind and a few properties.

    A stage's settings derive the facts of its output from those of its inputs, so that a whole chain can be checked
    before any of it has run; an artifact on disk carries them in its manifest. A property that is not known is absent.

    Kinds and their properties:

    - `documents`: `splits` (list of names)
    - `examples`: `format` ("conversations", "labels" or "preferences"), `labels` (list of names), `splits`
    - `tokenizer`: `vocab_size`, `algorithm`, `chat_template` (bool), `mask_token` (bool)
    - `tokens`: `vocab_size`, `splits`, `mask_token`, `chat_template`
    - `model`: `family`, `head` ("causal-lm", "masked-lm", "classification", "reward"), `causal` (bool), `context`,
      `vocab_size`, `labels`, `chat_template`, `linears` (inputs and outputs of a block's linear maps by name)
    - `adapter`: as `model`; a change of the model that it names, without that model's weights
    - `results`: none
    - `file`: `suffix`; a file or folder that is no artifact
    """

    kind: str
    properties: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """A property, or None where it is not known."""
        return self.properties.get(name)


@dataclass(frozen=True)
class Input:
    """A place in a stage's settings that names an input.

    Args:
        key: dotted key below the stage ("model", "models.0").
        value: what is written there: the name of another stage, a path, or "hf:owner/name".
        kinds: kinds of artifact that fit; "file" admits a plain file or folder, "model" a Hugging Face directory.
    """

    key: str
    value: str
    kinds: tuple[str, ...]


class StageConfig(Config):
    """Base of the settings of every kind of stage."""

    kind: ClassVar[str]
    """Name of the kind; also the value of the key `stage`."""

    stage: str
    """Kind of the stage; may be left out where the stage's name is a kind."""
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Seed of this stage; by default derived from the experiment's seed and the stage's name."""

    without_effect: ClassVar[frozenset[str]] = frozenset()
    """Top-level keys that leave the result as it is (logging, how often to save): changing them reruns nothing."""

    def environment(self) -> Mapping[str, str]:
        """What the result depends on beside settings and inputs, such as the version of the Python that is read."""
        return {}

    def inputs(self) -> list[Input]:
        """Places in these settings that name inputs, in a fixed order."""
        return []

    def measured_on(self) -> list[str]:
        """The inputs that hold what models are measured on, for a stage that measures."""
        return []

    def with_measured(self, measured: Mapping[str, Sequence[str]]) -> StageConfig:
        """These settings, with what is measured on in the place of the names of stages that measure.

        Args:
            measured: by the name of each such stage, what it measures on and what is not made of this stage's result.
        """
        return self

    def facts(self, inputs: Mapping[str, Facts]) -> Facts:
        """What the stage will produce, as far as it is known from its settings and the facts of its inputs."""
        raise NotImplementedError

    def check(self, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """What is wrong with these settings given the facts of their inputs (keyed as in `inputs()`)."""
        yield from ()
