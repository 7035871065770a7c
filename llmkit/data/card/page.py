"""The page of a data card: where the text comes from, what was done to it, what is left, what is missing.

It is made from the settings and the counts alone, so that equal corpora have equal cards. Steps are named by their keys
in the settings and described by the words that stand there: a step that is added is in the card without more ado.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from llmkit import __version__
from llmkit.config.base import Config
from llmkit.data.card.hub import front_matter
from llmkit.data.card.markdown import block, bullets, code, plain, settings_line, table
from llmkit.data.card.portable import portable_settings
from llmkit.data.config import DataConfig
from llmkit.data.corpus.census import over_sources
from llmkit.data.corpus.counts import READ
from llmkit.data.deduplication.config import DeduplicationConfig
from llmkit.store.stage import ResolvedInput

CARD = "README.md"
_LANGUAGES = 40
_NOT_RECORDED = "*not recorded*"
_EXACT = "exact"
"""Key in `deduplication` of the method that is called `exact_duplicates` among steps."""
_IN_COLUMNS = {"name", "kind", "license", "language"}
"""Settings of a source that have columns of their own."""


def data_card(name: str, config: DataConfig, report: Mapping[str, Any], inputs: Mapping[str, ResolvedInput]) -> str:
    """A dataset card in the form of the Hugging Face hub: YAML, then Markdown.

    Args:
        name: name of the corpus.
        config: settings of its stage.
        report: what the stage has counted, with the `gaps` that it knows.
        inputs: the files and artifacts that it has read, by dotted key.
    """
    resolved, written = (portable_settings(config, defaults=defaults) for defaults in (True, False))
    total = over_sources(report["census"])
    head = yaml.safe_dump(front_matter(name, report), sort_keys=False, allow_unicode=True)
    size = f"{total['documents']:,} documents, {total['characters']:,} characters, {total['bytes']:,} bytes in UTF-8"
    sections = {
        "Sources": _sources(resolved["sources"], written["sources"], report),
        "Licences": _counted(total["licenses"], "licence"),
        "Languages": _counted(total["languages"], "language"),
        "Splits": _splits(resolved, report),
        "Columns": _columns(),
        "What was done": _steps(config, resolved, report),
        "Personal data": _personal(config, report),
        "Known gaps": bullets(report["gaps"]),
        "How to make it again": _again(config, written, inputs),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{head}---\n\n# {plain(name)}\n\n{size}.\n\n{_OPEN}\n\n{body}\n"


_OPEN = block(
    "from datasets import load_dataset\n\n"
    'documents = load_dataset("FOLDER", split="train")  # the folder of this file\n',
    "python",
)


def _sources(
    resolved: Sequence[Mapping[str, Any]], written: Sequence[Mapping[str, Any]], report: Mapping[str, Any]
) -> str:
    rows, details = [], []
    for source, own in zip(resolved, written, strict=True):
        label = source["name"] or source["kind"]
        counts, counted = report["sources"][label], report["census"].get(label, {})
        rows.append(
            [
                code(label),
                source["kind"],
                _names(counted.get("licenses", {source["license"] or "": None})),
                _names(counted.get("languages", {source["language"] or "": None})),
                _dates(counted.get("dates")),
                counts["in"],
                sum(counts["quarantined"].values()),
                sum(counts["dropped"].values()),
                counts["kept"],
                counts["bytes_kept"],
            ]
        )
        settings = settings_line({name: value for name, value in own.items() if name not in _IN_COLUMNS})
        fetched = [f"fetched {_dates(counted['fetched'])}"] if "fetched" in counted else []
        if settings or fetched:
            details.append(f"{code(label)}: {', '.join([*([settings] if settings else []), *fetched])}.")
    columns = ["source", "kind", "licence", "language", "written", "read", "unreadable", "dropped", "kept", "bytes"]
    return "\n\n".join([table(columns, rows), *([bullets(details)] if details else [])])


def _names(counted: Mapping[str, Any]) -> str:
    shown = [plain(name) if name else _NOT_RECORDED for name in list(counted)[:3]]
    return ", ".join([*shown, *([f"{len(counted) - 3:,} more"] if len(counted) > 3 else [])])


def _dates(dates: Mapping[str, Any] | None) -> str:
    if dates is None:
        return _NOT_RECORDED
    return dates["first"] if dates["first"] == dates["last"] else f"{dates['first']} to {dates['last']}"


def _counted(counted: Mapping[str, Any], what: str) -> str:
    rows = [
        [plain(name) if name else _NOT_RECORDED, entry["documents"], entry["bytes"]] for name, entry in counted.items()
    ]
    more = f"\n\nAnd {len(rows) - _LANGUAGES:,} more." if len(rows) > _LANGUAGES else ""
    return table([what, "documents", "bytes"], rows[:_LANGUAGES]) + more


def _splits(resolved: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    rows = [[split, counted["documents"], counted["bytes"]] for split, counted in report["splits"].items()]
    keys = [
        f"{code(source['name'] or source['kind'])} by {code(source['split_key'])}"
        for source in resolved["sources"]
        if source["split_key"] is not None
    ]
    by = f" Documents that agree in a key stay together: {', '.join(keys)}." if keys else ""
    return (
        table(["split", "documents", "bytes"], rows)
        + "\n\nA document's split follows from the digest of its text alone, so that what is held out stays held out "
        f"in every corpus with these shares: {settings_line(resolved['splits'])}.{by}"
    )


def _columns() -> str:
    rows = [
        [code("id"), "the first 32 hexadecimal digits of the sha256 of the text"],
        [code("text"), "the text"],
        [code("source"), "name of the source"],
        [code("path"), "file, record or URL inside of the source"],
        [code("license"), "licence, where it is known"],
        [code("language"), "language, where it is known"],
        [code("metadata"), "whatever else the source says, as JSON"],
        [code("split"), "split"],
        [code("<filter>.<column>"), "what a filter has measured, by the key of the filter below"],
    ]
    return table(["column", "what"], rows)


def _steps(config: DataConfig, resolved: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    rows, details = [], []
    for name, counts in report["total"]["steps"].items():
        gone = {**counts["quarantined"], **counts["dropped"]}
        reasons = ", ".join(f"{code(reason)} {count:,}" for reason, count in gone.items())
        rows.append([code(name), counts["in"], counts["changed"], counts["kept"], reasons])
        if name != READ:
            description, settings = _described(name, config, resolved)
            limits = f" {settings_line(settings)}." if settings else ""
            details.append(f"{code(name)}: {description}{limits}")
    shared = resolved["deduplication"]
    if shared["earlier"]:
        earlier = ", ".join(map(code, shared["earlier"]))
        details.append(f"Deduplication also looks at these earlier corpora: {earlier}.")
    columns = ["step", "documents in", "changed", "kept", "dropped, by reason"]
    return (
        "In this order. What a step dropped is in `dropped/` with the reason.\n\n"
        + table(columns, rows)
        + "\n\nThe steps and all their settings:\n\n"
        + bullets(details)
    )


def _described(name: str, config: DataConfig, resolved: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What the settings say of a step, and its settings."""
    owners: dict[str, tuple[Config, Any]] = {
        "cleaning": (config.cleaning, resolved["cleaning"]),
        "deduplication": (config.deduplication, resolved["deduplication"]),
        "": (config, resolved),
    }
    for owner, values in owners.values():
        key = _EXACT if isinstance(owner, DeduplicationConfig) and name == "exact_duplicates" else name
        if key in type(owner).model_fields:
            description = " ".join((type(owner).model_fields[key].description or "").split())
            settings = values[key] if isinstance(values[key], dict) else {}
            # Cutting drops what is left too short.
            if isinstance(owner, DeduplicationConfig) and key not in (_EXACT, "minhash"):
                settings = {**settings, "deduplication.min_characters": values["min_characters"]}
            return description, settings
    return "", {}


def _personal(config: DataConfig, report: Mapping[str, Any]) -> str:
    settings = config.cleaning.personal_data
    if settings is None:
        return "Personal data was not looked for."
    counts = report["total"]["steps"]["personal_data"]
    rows = [[kind, action] for kind, action in settings.actions().items()]
    return (
        f"Documents changed: {counts['changed']:,}, dropped: {sum(counts['dropped'].values()):,}. Each kind that was "
        "looked for, and what became of it:\n\n"
        + table(["kind", "action"], rows)
        + "\n\n`dropped/` and `quarantine/` hold texts as they came, and `manifest.json` the seed of replacements: "
        "give them to nobody who may not have the sources."
    )


def _again(config: DataConfig, written: Mapping[str, Any], inputs: Mapping[str, ResolvedInput]) -> str:
    wanted = yaml.safe_dump(dict(written), sort_keys=False, allow_unicode=True)
    parts = [f"llmkit {__version__}, by `llmkit data` with these settings and the defaults of that version:"]
    parts.append(block(wanted, "yaml"))
    if config.environment():
        parts.append(f"It depends on {settings_line(dict(config.environment()))}.")
    if inputs:
        rows = [[code(key), code(found.digest)] for key, found in inputs.items()]
        parts.append("What was read, by its sha256 (of a folder or pattern: of names and bytes of the files):")
        parts.append(table(["input", "digest"], rows))
    parts.append(
        "`manifest.json` names every file with its sha256, and `report.json` has all counts by source and step."
    )
    return "\n\n".join(parts)
