"""Which steps and filters there are, in the order in which they run."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from llmkit.config.base import Config
from llmkit.data.cleaning.base import Filter, Step
from llmkit.data.cleaning.config import CleaningConfig

_STEPS = (
    ("mojibake", "cleaning.mojibake:Mojibake"),
    ("unicode", "cleaning.unicode:Unicode"),
    ("c4_lines", "cleaning.c4_lines:C4Lines"),
    ("personal_data", "personal.step:PersonalData"),
)
_FILTERS = (
    ("urls", "cleaning.urls:Urls"),
    ("language", "cleaning.language:Language"),
    ("length", "cleaning.length:Length"),
    ("repetition", "cleaning.repetition:Repetition"),
    ("gopher_quality", "cleaning.gopher_quality:GopherQuality"),
    ("gopher_repetition", "cleaning.gopher_repetition:GopherRepetition"),
    ("c4", "cleaning.c4:C4"),
    ("fineweb", "cleaning.fineweb:FineWeb"),
    ("code", "cleaning.code:Code"),
    ("perplexity", "modelled.perplexity:Perplexity"),
    ("classifier", "modelled.classifier:Classifier"),
    ("toxicity", "modelled.toxicity:Toxicity"),
)
"""Keys of `cleaning` in the order in which they run, and the class that does the work, made when it is asked for."""
FILLED = {"language": ("language", "language")}
"""Fields of documents that get what a filter has measured where the source states nothing: filter and column of it."""


def steps(config: CleaningConfig) -> list[Step]:
    """The steps that the settings ask for, in their order; they run before the filters."""
    return [_made(place, settings) for name, place in _STEPS if (settings := getattr(config, name)) is not None]


def filters(config: CleaningConfig) -> list[Filter]:
    """The filters that the settings ask for, in the order in which they judge."""
    return [_made(place, settings) for name, place in _FILTERS if (settings := getattr(config, name)) is not None]


def _made(place: str, settings: Config) -> Any:
    module, name = place.split(":")
    return getattr(import_module(f"llmkit.data.{module}"), name)(settings)
