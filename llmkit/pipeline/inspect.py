"""What is this? Any artifact, run, model directory, tokenizer or data file, as an overview and a few tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.console import emit_table, format_cell, format_seconds
from llmkit.data.inspect import Table
from llmkit.errors import ArtifactError
from llmkit.store.artifact import Artifact, is_artifact, open_artifact
from llmkit.store.stage import ResolvedInput, tokenizer_directory
from llmkit.store.workspace import STATE

if TYPE_CHECKING:
    from llmkit.tokenizer.tokenizer import Tokenizer

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
    return _described(path, what, overview, tables)


def inspect_row(path: Path, row: int, split: str, tokenizer: str | None = None) -> dict[str, Any]:
    """Show one row: a document or an example as tokens, with the loss mask where there is one.

    Args:
        path: an artifact of documents, tokens or examples, or a file of examples. Files are not checked against the
            manifest, which would read all of them.
        row: number of the row in its split, from 0.
        split: "train", "validation" or "test".
        tokenizer: a folder with a tokenizer; tokens come with theirs. Without one, the text is shown.

    Returns:
        as `inspect_path`.

    Raises:
        ArtifactError: there is nothing there, or nothing that has rows.
        DataError: there is no such row or split.
    """
    from llmkit.data.inspect_rows import show_document, show_example, show_tokens

    if not path.exists():
        raise ArtifactError("there is no such file or folder.", where=str(path))
    artifact = open_artifact(path, verify=False) if is_artifact(path) else None
    kind = "file" if artifact is None else artifact.manifest.kind
    named = str(path) if kind == "tokens" else tokenizer
    loaded = None if named is None else _load_tokenizer(named)
    if kind == "documents":
        tables = show_document(path, split, row, loaded)
    elif kind == "tokens" and loaded is not None:
        tables = show_tokens(path, split, row, loaded)
    elif kind == "examples" or (artifact is None and not _is_known(path)):
        tables = show_example(_plain(path) if artifact is None else _input(artifact), split, row, loaded)
    else:
        raise ArtifactError(
            "there are no rows here.",
            where=str(path),
            hint="Rows are shown of documents, tokens, examples, and files of examples.",
        )
    return _described(path, f"row {row:,} of the split `{split}`", {}, tables)


def _is_known(path: Path) -> bool:
    """Whether a folder is a run, a model, a tokenizer or an unfinished stage."""
    return any((path / name).is_file() for name in ("run.yaml", "config.json", "tokenizer.json", STATE))


def _described(path: Path, what: str, overview: dict[str, Any], tables: Sequence[Table]) -> dict[str, Any]:
    # Not `asdict`, which would take the cells that are marked to pieces.
    shown = [
        {"title": table.title, "columns": table.columns, "rows": table.rows, "bars": table.bars} for table in tables
    ]
    return {"path": str(path), "what": what, "overview": overview, "tables": shown}


def show_inspection(found: dict[str, Any]) -> None:
    """Print a description for people."""
    print(f"{found['path']}: {found['what']}")
    for key, value in found["overview"].items():
        text = format_cell(value) if not isinstance(value, (dict, list)) else json.dumps(value, ensure_ascii=False)
        print(f"  {key}: {text}")
    for table in found["tables"]:
        emit_table(table["columns"], table["rows"], title=table["title"], bars=table["bars"])


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

        return summarize_tokens(path, partial(_load_tokenizer(str(path)).decode, skip_special=False))
    if kind == "examples":
        return _examples(_input(artifact), tokenizer)[1]
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


def _input(artifact: Artifact) -> ResolvedInput:
    return ResolvedInput("data", str(artifact.path), artifact.path, artifact.digest, artifact.facts, artifact)


def _load_tokenizer(folder: str) -> Tokenizer:
    from llmkit.tokenizer.tokenizer import Tokenizer

    return Tokenizer.load(tokenizer_directory(Path(folder)))


def _examples(source: ResolvedInput, tokenizer: str | None) -> tuple[dict[str, Any], list[Table]]:
    from llmkit.data.examples import split_examples
    from llmkit.data.inspect_examples import summarize_examples

    kind, by_split = split_examples(source)
    tables = summarize_examples(source)
    if tokenizer is not None and kind == "conversations":
        tables.append(_masked(next((rows for rows in by_split.values() if rows), [])[:_MASKS_SHOWN], tokenizer))
    return {"format": kind, "rows": {split: len(rows) for split, rows in by_split.items()}}, tables


def _masked(conversations: Sequence[Any], tokenizer: str) -> Table:
    """Tokens of conversations; those that the loss is taken on are marked."""
    from llmkit.data.inspect import marked_tokens
    from llmkit.data.inspect_rows import encode_example

    loaded = _load_tokenizer(tokenizer)
    rows = []
    for conversation in conversations:
        ((_, ids, mask),) = encode_example(conversation, loaded)
        shown = marked_tokens(ids, partial(loaded.decode, skip_special=False), mask)
        rows.append([shown, sum(mask), len(ids)])
    return Table("Loss masks (learned: [[...]], or green)", ["tokens", "learned", "all"], rows)
