"""What is this? Any artifact, run, model directory, tokenizer or data file, as an overview and a few tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmkit.console import emit_table, format_cell, format_seconds
from llmkit.data.inspect import Table
from llmkit.errors import ArtifactError
from llmkit.store.artifact import Artifact, is_artifact, open_artifact
from llmkit.store.stage import ResolvedInput, tokenizer_directory
from llmkit.store.workspace import STATE

_FILES_SHOWN = 12
_MASKS_SHOWN = 3


def inspect_path(path: Path, tokenizer: str | None = None) -> dict[str, Any]:
    """Describe what stands at a path.

    Args:
        path: a run, an artifact (every file of which is checked against its manifest), a model or tokenizer
            directory, or a file of examples.
        tokenizer: a folder with a tokenizer, to show conversations as tokens with their loss masks.

    Returns:
        `path`, `what` (one line), `overview` (mapping) and `tables` (title, columns, rows).

    Raises:
        ArtifactError: there is nothing there, it is damaged, or nothing that llmkit knows.
    """
    if (path / "run.yaml").is_file():
        what, overview, tables = "a run", dict[str, Any](), [_stages(path)]
    elif is_artifact(path):
        what, overview, tables = _artifact(open_artifact(path, verify=True), tokenizer)
    elif (path / "config.json").is_file():
        what, overview, tables = "a model", *_model(path)
    elif (path / "tokenizer.json").is_file():
        what, overview, tables = "a tokenizer", *_tokenizer(path)
    elif (path / STATE).is_file():
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        what, overview, tables = f"the unfinished stage `{state['name']}` of kind {state['stage']}", state["config"], []
    elif path.exists():
        what, overview, tables = "a data file", *_examples(_plain(path), tokenizer)
    else:
        raise ArtifactError("there is no such file or folder.", where=str(path))
    return {"path": str(path), "what": what, "overview": overview, "tables": [asdict(table) for table in tables]}


def show_inspection(found: dict[str, Any]) -> None:
    """Print a description for people."""
    print(f"{found['path']}: {found['what']}")
    for key, value in found["overview"].items():
        text = format_cell(value) if not isinstance(value, (dict, list)) else json.dumps(value, ensure_ascii=False)
        print(f"  {key}: {text}")
    for table in found["tables"]:
        emit_table(table["columns"], table["rows"], title=table["title"])


def _stages(run: Path) -> Table:
    rows: list[list[Any]] = []
    for place in sorted(folder for folder in run.iterdir() if folder.is_dir() and not folder.name.startswith(".")):
        if is_artifact(place):
            manifest = open_artifact(place, verify=False).manifest
            seconds = manifest.summary.get("seconds")
            size = sum(entry.size for entry in manifest.files)
            time = None if seconds is None else format_seconds(seconds)
            rows.append(
                [manifest.name, manifest.stage, "complete", time, round(size / 1e6, 2), manifest.content_digest[:12]]
            )
        elif (place / STATE).is_file():
            state = json.loads((place / STATE).read_text(encoding="utf-8"))
            rows.append([state["name"], state["stage"], f"unfinished, in {place.name}", None, None, None])
    return Table("Stages", ["stage", "kind", "state", "time", "MB", "digest"], rows)


def _artifact(artifact: Artifact, tokenizer: str | None) -> tuple[str, dict[str, Any], list[Table]]:
    manifest = artifact.manifest
    overview: dict[str, Any] = {
        "digest": artifact.digest,
        "facts": dict(manifest.facts),
        "made by": dict(manifest.versions),
        "inputs": {key: value["value"] for key, value in manifest.inputs.items()},
    }
    overview.update({f"summary {key}": value for key, value in manifest.summary.items()})
    what = f"{manifest.kind}, made by the stage `{manifest.name}` of kind {manifest.stage}; all files are whole"
    return what, overview, [*_details(artifact, tokenizer), _files(artifact)]


def _files(artifact: Artifact) -> Table:
    entries = sorted(artifact.manifest.files, key=lambda entry: -entry.size)
    rows = [[entry.path, entry.size, entry.sha256[:12], entry.content] for entry in entries[:_FILES_SHOWN]]
    more = len(entries) - len(rows)
    return Table(
        "Files" + (f" (and {more} smaller ones)" if more > 0 else ""), ["file", "bytes", "sha256", "content"], rows
    )


def _details(artifact: Artifact, tokenizer: str | None) -> list[Table]:
    kind, path = artifact.manifest.kind, artifact.path
    if kind == "documents":
        from llmkit.data.inspect import summarize_documents

        return summarize_documents(path)
    if kind == "tokens":
        from llmkit.data.inspect import summarize_tokens
        from llmkit.tokenizer.tokenizer import Tokenizer

        return summarize_tokens(path, Tokenizer.load(path / "tokenizer").decode)
    if kind == "examples":
        source = ResolvedInput("data", str(path), path, artifact.digest, artifact.facts, artifact)
        return _examples(source, tokenizer)[1]
    if kind == "tokenizer":
        return _tokenizer(path / "tokenizer")[1]
    if kind == "model":
        return _model(path / "model")[1]
    return _results(path)


def _results(path: Path) -> list[Table]:
    from llmkit.eval.results import results_tables

    tables = results_tables(json.loads((path / "results.json").read_text(encoding="utf-8")))
    return [Table(task, columns, [list(row) for row in rows]) for task, columns, rows in tables]


def _model(path: Path) -> tuple[dict[str, Any], list[Table]]:
    from llmkit.model.checkpoint import list_tensors
    from llmkit.model.facts import read_model_facts

    tensors = list_tensors(path)
    rows = [
        [name, "x".join(map(str, found.shape)), found.kind, math.prod(found.shape)] for name, found in tensors.items()
    ]
    table = Table(f"Weights ({len(rows)} tensors)", ["tensor", "shape", "type", "parameters"], rows)
    return read_model_facts(path), [table]


def _tokenizer(path: Path) -> tuple[dict[str, Any], list[Table]]:
    from llmkit.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(path)
    sample = "def greet(name):\n    return f'Hello, {name}! It is 2024.'"
    overview = {
        "algorithm": tokenizer.algorithm,
        "vocab_size": tokenizer.vocab_size,
        "chat template": tokenizer.chat_template is not None,
    }
    special = [[tokenizer.decode([token], skip_special=False), token] for token in sorted(tokenizer.special_ids)]
    pieces = [[token, tokenizer.decode([token])] for token in tokenizer.encode(sample)]
    return overview, [Table("Special tokens", ["token", "id"], special), Table("A sample", ["id", "text"], pieces)]


def _plain(path: Path) -> ResolvedInput:
    from llmkit.config.base import Facts

    return ResolvedInput("data", str(path), path, "", Facts("file", {"suffix": "".join(path.suffixes)}))


def _examples(source: ResolvedInput, tokenizer: str | None) -> tuple[dict[str, Any], list[Table]]:
    from llmkit.data.examples import split_examples
    from llmkit.data.inspect_examples import summarize_examples

    kind, by_split = split_examples(source)
    tables = summarize_examples(source)
    if tokenizer is not None and kind == "conversations":
        tables.append(_masked(next((rows for rows in by_split.values() if rows), [])[:_MASKS_SHOWN], tokenizer))
    return {"format": kind, "rows": {split: len(rows) for split, rows in by_split.items()}}, tables


def _masked(conversations: Sequence[Any], tokenizer: str) -> Table:
    """Tokens of conversations; those that the loss is taken on stand in double brackets."""
    from llmkit.tokenizer.tokenizer import Tokenizer

    loaded = Tokenizer.load(tokenizer_directory(Path(tokenizer)))
    rows = []
    for conversation in conversations:
        ids, mask = loaded.render_conversation(conversation.messages)
        pieces = [loaded.decode([token], skip_special=False) for token in ids]
        text = "|".join(f"[[{piece}]]" if learned else piece for piece, learned in zip(pieces, mask, strict=True))
        rows.append([text.replace("\n", "\\n"), sum(mask), len(ids)])
    return Table("Loss masks ([[...]]: learned)", ["tokens", "learned", "all"], rows)
