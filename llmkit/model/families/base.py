"""What a family declares, and the translation of its `config.json` and weight names from these declarations. No torch.

A family is one module with one `Family` value: which parts of the transformer it uses, how its settings and weights are
named in a Hugging Face directory, and which of the reference's settings would change the result in ways that the
transformer does not offer (those are refused, never ignored).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from llmkit.errors import ModelError
from llmkit.model.config import LABELLED, Head, ModelConfig

REQUIRED = object()
"""Default of a `Key` that config.json must have."""

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""Names of activations in config.json, and ours; the first name of each is the one written."""


@dataclass(frozen=True)
class Key:
    """One setting of ModelConfig and its name in config.json.

    `default` is what the reference takes where config.json leaves the key out or holds null.
    """

    ours: str
    theirs: str
    default: Any = REQUIRED


@dataclass(frozen=True)
class Weight:
    """Modules whose weights (and biases, where they have them) correspond, or single tensors.

    `{i}` stands for the layer. Several names on one side are stacked, in order, along the output dimension.
    `transposed`: the reference stores weights as [inputs, outputs].
    `groups`: the ModelConfig setting that says in how many groups the stacked parts alternate, such as "heads" where
    the rows are query, key and value of the first head, then of the second; by default each part is in one piece.
    `{e}` in their names stands for the expert: the reference has one tensor for each, we have one [experts, ...].
    `dimension`: the output dimension, for tensors that hold all experts on both sides 1.
    `heads`: the heads that have them under these names; by default all that have them.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transposed: bool = False
    groups: str | None = None
    dimension: int = 0
    heads: tuple[Head, ...] = ()


@dataclass(frozen=True)
class Transfer:
    """Tensors that correspond: `Weight` for one layer and one of weight and bias; see `llmkit.model.layout`.

    Attributes:
        ours, theirs: names; of experts that the reference keeps apart, `theirs` has all of the first, then the second.
        transposed: the last two dimensions are exchanged.
        groups: in how many groups the stacked parts alternate.
        dimension: along which parts are stacked.
        experts: number of experts that the reference keeps apart, or 0.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transposed: bool = False
    groups: int = 1
    dimension: int = 0
    experts: int = 0

    def of_one_expert(self) -> Transfer:
        """The transfer for each expert alone."""
        count = len(self.theirs) // self.experts
        return replace(self, theirs=self.theirs[:count], experts=0)


def weights(names: Mapping[str, str], *heads: Head) -> tuple[Weight, ...]:
    """A table of one-to-one names, ours to theirs, under some heads or by default under all."""
    return tuple(Weight((ours,), (theirs,), heads=heads) for ours, theirs in names.items())


SCORES = (
    *weights({"head.score": "score"}, "classification", "reward", "token-classification"),
    *weights({"head.score": "qa_outputs"}, "question-answering"),
)
"""Names of the final map in most decoders."""


@dataclass(frozen=True)
class Family:
    """A family of models; see the module's docstring.

    Attributes:
        name: as written in YAML, and `model_type` in config.json.
        base: the reference's class without a head, such as "LlamaModel".
        architectures: the reference's class for each head; the first head is the family's own. All families have an
            embedding head beside these, which the reference knows as its class without a head.
        parts: ModelConfig settings that make the family what it is.
        keys: settings that models of the family differ in.
        options: ModelSpec fields that mean something for this family, beyond those that all have.
        spec_defaults: values of ModelSpec fields left out; a function gets the width.
        weights: the table of weight names.
        prefix: what names of the body begin with in a checkpoint with a head.
        head_prefixes: what they begin with under heads where that is something else.
        only: settings of the reference with the one value that the transformer computes.
        aliases: second names of tensors, read in the first one's stead where present and written beside it.
        ignored: patterns of tensors in checkpoints that carry no weight of the model.
        renamed: what tensors' names begin with in some checkpoints, and what they begin with in the table of weights.
        joined: tensors that some checkpoints hold in place of several in the table of weights: of layer `{i}`, of all
            experts `{e}`, with the parts of each stacked; see `llmkit.model.packed`.
        section: the key of config.json under which the settings stand, where they do not stand at its top.
        read: completes ModelConfig values from config.json where `keys` do not suffice.
        write: completes config.json from the ModelConfig likewise.
        complete: completes ModelConfig values of a new model where `parts` and `spec_defaults` do not suffice.
    """

    name: str
    base: str
    architectures: Mapping[Head, str]
    parts: Mapping[str, Any]
    keys: tuple[Key, ...]
    options: frozenset[str]
    spec_defaults: Mapping[str, int | float | bool | Callable[[int], int] | str]
    weights: tuple[Weight, ...]
    prefix: str
    head_prefixes: Mapping[Head, str] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    section: str | None = None
    read: Callable[[Mapping[str, Any], dict[str, Any]], None] | None = None
    write: Callable[[ModelConfig, dict[str, Any]], None] | None = None
    complete: Callable[[dict[str, Any]], None] | None = None

    def own_head(self) -> Head:
        """The head that the family is pretrained with."""
        return next(iter(self.architectures))

    @property
    def heads(self) -> Mapping[Head, str]:
        """All heads that the family can carry, and the reference's class for each."""
        return {**self.architectures, "embedding": self.base}

    def stored_prefix(self, head: Head | None) -> str:
        """What names of the body begin with in a checkpoint with this head, or of a body alone."""
        return "" if head in (None, "embedding") else self.head_prefixes.get(head, self.prefix)

    def stored_head(self, settings: Mapping[str, Any], where: str) -> Head | None:
        """The head that config.json names, or None for a body alone; refuses unknown architectures."""
        architectures = settings.get("architectures")
        name = architectures[0] if isinstance(architectures, list) and architectures else None
        if name == self.base:
            return None
        heads = [head for head, architecture in self.architectures.items() if architecture == name]
        if not heads:
            known = ", ".join(sorted({self.base, *self.architectures.values()}))
            raise ModelError(
                f"unknown architecture {name!r} of family {self.name}", where=where, hint=f"Known are {known}."
            )
        if "classification" in heads:
            return "reward" if len(read_labels(settings, where)) == 1 else "classification"
        return heads[0]

    def read_config(self, settings: Mapping[str, Any], where: str, head: Head, labels: Sequence[str]) -> ModelConfig:
        """The architecture that config.json describes; raises ModelError naming what is missing or unsupported."""
        if self.section is not None:
            section = settings.get(self.section, {})
            if not isinstance(section, dict):
                raise ModelError(f"{self.section} must hold a JSON object", where=where)
            settings = {**settings, **section}
        for name, value in self.only.items():
            if settings.get(name, value) not in (value, None):
                raise ModelError(
                    f"{name}: {settings[name]!r} is not supported for family {self.name}, only {value!r}", where=where
                )
        values = {"family": self.name, "head": head, "labels": tuple(labels), **self.parts}
        for key in self.keys:
            value = settings.get(key.theirs)
            if value is None and key.default is REQUIRED:
                raise ModelError(f"{key.theirs} is missing", where=where)
            values[key.ours] = key.default if value is None else self._typed(key, value, where)
        if "activation" not in self.parts:
            values["activation"] = self._read_activation(values["activation"], where)
        values.update(read_special_ids(settings))
        try:
            if self.read is not None:
                self.read(settings, values)
            return ModelConfig.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            renamed = {key.ours: key.theirs for key in self.keys}
            name = ".".join(renamed.get(str(part), str(part)) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise ModelError(f"{name}: {message}" if name else message, where=where) from None
        except ValueError as error:
            raise ModelError(str(error), where=where) from None

    def _typed(self, key: Key, value: Any, where: str) -> Any:
        """The value, refused where a whole number is due and it is none: `read` may compute with it."""
        whole = ModelConfig.model_fields[key.ours].annotation is int
        if whole and (not isinstance(value, int) or isinstance(value, bool)):
            raise ModelError(f"{key.theirs}: {value!r} is no whole number", where=where)
        return value

    def _read_activation(self, name: Any, where: str) -> str:
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise ModelError(
                f"unknown activation {name!r}", where=where, hint=f"Known are {', '.join(sorted(ACTIVATIONS))}."
            )
        return ACTIVATIONS[name]

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        """The content of config.json for this architecture."""
        values = config.model_dump()
        if "activation" not in self.parts:
            values["activation"] = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)
        settings: dict[str, Any] = {
            "architectures": [self.heads[config.head]],
            "model_type": self.name,
            **self.only,
            **{key.theirs: values[key.ours] for key in self.keys},
            "pad_token_id": config.pad_id,
            "bos_token_id": config.bos_id,
            "eos_token_id": write_ids(config.eos_ids),
        }
        if config.head in LABELLED or config.head == "reward":
            labels = config.labels or ("LABEL_0",)
            settings["id2label"] = {str(index): label for index, label in enumerate(labels)}
            settings["label2id"] = {label: index for index, label in enumerate(labels)}
        if self.write is not None:
            self.write(config, settings)
        return settings

    def transfers(self, config: ModelConfig, names: Sequence[str]) -> list[Transfer]:
        """Which tensors of a checkpoint make which of the model's parameters `names`, each named once."""
        wanted = set(names)
        found: list[Transfer] = []
        for weight in self.weights:
            if weight.heads and config.head not in weight.heads:
                continue
            repeats = range(config.layers) if "{i}" in weight.ours[0] else range(1)
            for i in repeats:
                for kind in ("", ".weight", ".bias"):
                    ours = tuple(name.format(i=i) + kind for name in weight.ours)
                    if ours[0] in wanted:
                        found.append(_transfer(weight, config, ours, i, kind))
        covered = {name for transfer in found for name in transfer.ours}
        assert covered == wanted, f"weights without a name in family {self.name}: {sorted(covered ^ wanted)}"
        return found


def _transfer(weight: Weight, config: ModelConfig, ours: tuple[str, ...], layer: int, kind: str) -> Transfer:
    apart = "{e}" in weight.theirs[0]
    experts = range(config.experts if apart else 1)
    return Transfer(
        ours,
        tuple(name.format(i=layer, e=e) + kind for e in experts for name in weight.theirs),
        # A bias has no second dimension to exchange.
        transposed=weight.transposed and not ours[0].endswith(".bias"),
        groups=1 if weight.groups is None else getattr(config, weight.groups),
        dimension=weight.dimension,
        experts=len(experts) if apart else 0,
    )


def with_defaults(keys: Sequence[Key], **defaults: Any) -> tuple[Key, ...]:
    """The same keys with other defaults for these settings of ModelConfig."""
    return tuple(replace(key, default=defaults.get(key.ours, key.default)) for key in keys)


def without(keys: Sequence[Key], *names: str) -> tuple[Key, ...]:
    """The keys but those of these settings of ModelConfig."""
    return tuple(key for key in keys if key.ours not in names)


def width_of_heads(values: Mapping[str, Any]) -> int:
    """The head width that splits the width evenly; raises ValueError where there is none."""
    width, heads = values["width"], values["heads"]
    if heads < 1 or width % heads:
        raise ValueError(f"the number of heads ({heads}) does not divide the width ({width})")
    return int(width // heads)


def read_labels(settings: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The label names of config.json in the order of their logits; two unnamed ones where it is silent."""
    names = settings.get("id2label")
    if names is None:
        count = settings.get("num_labels", 2)
        if not isinstance(count, int) or not 1 <= count <= 1_000_000:
            raise ModelError(f"num_labels: {count!r} is no number of labels", where=where)
        return tuple(f"LABEL_{index}" for index in range(count))
    try:
        ordered = {int(index): str(name) for index, name in names.items()}
    except (AttributeError, TypeError, ValueError):
        raise ModelError("id2label must map numbers to names", where=where) from None
    if sorted(ordered) != list(range(len(ordered))) or not ordered:
        raise ModelError("id2label must number its labels 0, 1, 2, ...", where=where)
    return tuple(ordered[index] for index in range(len(ordered)))


def read_special_ids(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Special tokens of config.json; negative ids, which old checkpoints hold for "none", are none."""
    pad, bos, eos = (settings.get(f"{name}_token_id") for name in ("pad", "bos", "eos"))
    ends = eos if isinstance(eos, list) else [eos]
    return {
        "pad_id": None if isinstance(pad, int) and pad < 0 else pad,
        "bos_id": None if isinstance(bos, int) and bos < 0 else bos,
        "eos_ids": tuple(end for end in ends if end is not None and not (isinstance(end, int) and end < 0)),
    }


def write_ids(ids: Sequence[int]) -> int | list[int] | None:
    """Ids as config.json holds them: one number, a list of several, or null."""
    if not ids:
        return None
    return ids[0] if len(ids) == 1 else list(ids)
