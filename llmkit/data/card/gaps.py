"""What is known to be missing: steps that were left out, and what documents do not tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmkit.config.base import Config
from llmkit.data.config import DataConfig
from llmkit.data.corpus.census import over_sources
from llmkit.data.personal.config import KINDS


def known_gaps(config: DataConfig, report: Mapping[str, Any]) -> list[str]:
    """What a reader of the corpus should not take for granted, as sentences of Markdown.

    Args:
        config: settings of the stage.
        report: what it has counted.
    """
    return [*_unread(report), *_untold(report), *_left_out(config), *_personal(config), *_held_out(config)]


def steps_left_out(settings: Config) -> dict[str, str]:
    """Steps that settings can ask for and do not, with what each would do."""
    return {
        name: field.description or ""
        for name, field in type(settings).model_fields.items()
        if getattr(settings, name) is None or getattr(settings, name) is False
    }


def _unread(report: Mapping[str, Any]) -> Iterator[str]:
    reasons = report["total"]["quarantined"]
    if reasons:
        named = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
        records = _some(sum(reasons.values()), report["total"]["in"], "records")
        yield f"{records} could not be read, and what they hold is missing ({named}). They are in `quarantine/`."


def _untold(report: Mapping[str, Any]) -> Iterator[str]:
    census = report["census"]
    total = over_sources(census)
    for name, what in (("licenses", "licence"), ("languages", "language")):
        unknown = total[name].get("", {"documents": 0})["documents"]
        if unknown:
            sources = [source for source, counted in census.items() if "" in counted[name]]
            named = f" (in {', '.join(f'`{source}`' for source in sources)})" if len(census) > 1 else ""
            yield f"No {what} is recorded of {_some(unknown, total['documents'], 'documents')}{named}."
    undated = total["documents"] - total.get("dates", {"documents": 0})["documents"]
    if undated:
        yield f"No date is recorded of {_some(undated, total['documents'], 'documents')}."


def _some(count: int, total: int, what: str) -> str:
    return f"all {total:,} {what}" if count == total else f"{count:,} of {total:,} {what}"


def _left_out(config: DataConfig) -> Iterator[str]:
    found = {**steps_left_out(config.cleaning), **steps_left_out(config.deduplication)}
    if config.decontamination is None:
        found["decontamination"] = type(config).model_fields["decontamination"].description or ""
    for name, description in found.items():
        yield f"`{name}` was left out. ({description})"


def _personal(config: DataConfig) -> Iterator[str]:
    settings = config.cleaning.personal_data
    if settings is None:
        return
    kept = [f"`{kind}`" for kind in KINDS if kind not in settings.actions()]
    if kept:
        yield f"Personal data of these kinds was not looked for: {', '.join(kept)}."
    yield "Names and postal addresses of persons were not looked for."


def _held_out(config: DataConfig) -> Iterator[str]:
    if config.deduplication.minhash is None and len(config.splits.names()) > 1:
        yield "What is held out may have near duplicates in the training split, since these were not looked for."
