"""Model cards: what each model is, what it was made from, under which licences, and how to use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.errors import ModelError
from llmkit.report.data import DataReport
from llmkit.report.files import as_number
from llmkit.report.stages import TRAINING, Stage

_SMALL = 1e9


@dataclass(frozen=True)
class Source:
    """Data that went into a model: the stage that made it, the source's name there, and its licence if known."""

    stage: str
    name: str
    license: str | None


@dataclass(frozen=True)
class ModelCard:
    """A model of the run.

    Args:
        stage: the stage that made it.
        what: what it is, in a few words.
        properties: name and value of what is known of the architecture and training.
        lineage: the stages that made it one after another, itself last; an outside model first.
        sources: the data that went into it and into the models before it.
        use: what it is for and where its limits are.
        command: how to use it; lines of a shell, or of Python.
    """

    stage: str
    what: str
    properties: tuple[tuple[str, Any], ...]
    lineage: tuple[str, ...]
    sources: tuple[Source, ...]
    use: str
    command: str


def model_cards(stages: Sequence[Stage], data: Mapping[str, DataReport], place: str) -> tuple[ModelCard, ...]:
    """A card for each finished model.

    Args:
        stages: all stages of the run.
        data: what the data stages say of themselves, by stage.
        place: the run's folder as a person writes it.
    """
    by_name = {stage.name: stage for stage in stages}
    models = [stage for stage in stages if stage.finished and stage.makes == "model"]
    return tuple(_card(stage, by_name, data, f"{place}/{stage.name}") for stage in models)


def _card(stage: Stage, stages: Mapping[str, Stage], data: Mapping[str, DataReport], path: str) -> ModelCard:
    facts = model_facts(stage)
    head = str(facts.get("head", ""))
    parameters = as_number(facts.get("parameters"))
    training = stage.config.get("algorithm") or stage.config.get("objective")
    properties = [
        ("family", facts.get("family")),
        ("head", head or None),
        ("parameters", facts.get("parameters")),
        ("layers", facts.get("layers")),
        ("width", facts.get("width")),
        ("context, tokens", facts.get("context")),
        ("vocabulary", facts.get("vocab_size")),
        ("labels", facts.get("labels") or None),
        ("chat template", facts.get("chat_template")),
        ("trained by", f"{stage.kind} ({training})" if training else stage.kind),
        ("steps", stage.summary.get("steps")),
        ("tokens of this stage", stage.summary.get("tokens")),
        ("precision", stage.summary.get("precision")),
    ]
    return ModelCard(
        stage.name,
        _what(facts, parameters),
        tuple((name, value) for name, value in properties if value is not None),
        tuple(_lineage(stage, stages)),
        tuple(dict.fromkeys(_sources(stage, stages, data, set()))),
        _use(head, parameters, aligned=stage.kind != "pretrain"),
        _command(head, path, chats=bool(facts.get("chat_template")) and stage.kind != "pretrain"),
    )


def model_facts(stage: Stage) -> dict[str, Any]:
    """What the manifest and the model's own config.json say of it; the manifest alone where that cannot be read."""
    from llmkit.model.facts import read_model_facts

    facts = dict(stage.facts)
    if stage.directory is not None:
        try:
            facts = {**read_model_facts(stage.directory / "model"), **facts}
        except ModelError:
            facts.setdefault("parameters", stage.summary.get("parameters"))
    return facts


def _what(facts: Mapping[str, Any], parameters: float | None) -> str:
    kind = {
        "causal-lm": "language model that continues text",
        "masked-lm": "encoder that fills in masked words",
        "classification": "classifier of texts",
        "token-classification": "classifier of words",
        "reward": "reward model, which scores answers",
    }.get(str(facts.get("head")), "model")
    size = "" if parameters is None else "small " if parameters < _SMALL else "large "
    family = f", of the {facts['family']} family" if facts.get("family") else ""
    return f"A {size}{kind}{family}."


def _lineage(stage: Stage, stages: Mapping[str, Stage]) -> Iterator[str]:
    """The stages that trained the same weights before, the first one first."""
    for found in stage.inputs:
        if found.key == "model":
            before = stages.get(found.stage or "")
            if before is None:
                yield found.value
            elif before.name != stage.name:
                yield from _lineage(before, stages)
    yield stage.name


def _sources(
    stage: Stage, stages: Mapping[str, Stage], data: Mapping[str, DataReport], seen: set[str]
) -> Iterator[Source]:
    """All data that a stage depends on; what is no stage counts under the name it is written by."""
    if stage.name in seen:
        return
    seen.add(stage.name)
    for found in stage.inputs:
        if found.stage is not None:
            yield from _sources(stages[found.stage], stages, data, seen)
        elif stage.kind in TRAINING:
            yield Source(stage.name, found.value, None)
    for name, license in data[stage.name].licenses if stage.name in data else ():
        yield Source(stage.name, name, license)


def _use(head: str, parameters: float | None, *, aligned: bool) -> str:
    """Intended use and limits, in sentences that hold for any model of this kind."""
    small = parameters is not None and parameters < _SMALL
    purpose = {
        "causal-lm": "Answers prompts like those it was tuned on" if aligned else "Continues text like what it read",
        "masked-lm": "A starting point for classifiers and other encoders",
        "classification": "Assigns one of its labels to texts like those it was trained on",
        "token-classification": "Assigns one of its labels to each word of texts like those it was trained on",
        "reward": "Scores answers to prompts like those it was trained on, and steers the training of other models",
    }.get(head, "See how it was trained")
    size = "It is small: made to study how such models come about, and no match for large ones. " if small else ""
    limits = {
        "causal-lm": "What it writes may be false, and reads fluently all the same; check it before relying on it.",
        "masked-lm": "It reflects the texts it was trained on and knows nothing beyond them.",
        "classification": "It gives a label to any text, fitting or not; the results tell how often it is wrong.",
        "token-classification": "It gives a label to any word, fitting or not; validation tells how often it is wrong.",
        "reward": "High scores can be had by bad answers; it measures likeness to preferred answers, not truth.",
    }.get(head, "")
    untested = "It has not been tested for safety or bias; do not let it decide about people."
    return f"{purpose}. {size}{limits} {untested}"


def _command(head: str, path: str, *, chats: bool) -> str:
    if head == "causal-lm":
        return f"llmkit chat --model {path}" if chats else f'llmkit generate --model {path} "Once upon a time"'
    wanted = {
        "masked-lm": "AutoModelForMaskedLM",
        "token-classification": "AutoModelForTokenClassification",
    }.get(head, "AutoModelForSequenceClassification")
    return (
        f"from transformers import AutoTokenizer, {wanted}\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{path}/model")\n'
        f'model = {wanted}.from_pretrained("{path}/model")'
    )
