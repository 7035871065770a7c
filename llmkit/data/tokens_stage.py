"""The stage `tokens`: documents to token shards."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmkit.config.base import Facts, Finding
from llmkit.data.execution.cache import Cache
from llmkit.data.execution.engine import open_engine
from llmkit.data.execution.sharing import WorkIsOverError, remove_signs
from llmkit.data.execution.tasks import Task
from llmkit.data.shards import ShardWriter
from llmkit.data.tokenization import join, plan_tasks
from llmkit.data.tokens_config import TokensConfig
from llmkit.errors import DataError
from llmkit.store.attempts import start_over
from llmkit.store.documents import count_documents, document_files, read_documents
from llmkit.store.files import sha256_file, write_json_atomic
from llmkit.store.splits import SPLITS
from llmkit.store.stage import Context, Outcome
from llmkit.tokenizer.tokenizer import Tokenizer

TOKENIZER = "tokenizer"
REPORT = "report.json"
_ROLES = ("pad_id", "bos_id", "eos_id", "unk_id", "mask_id", "cls_id", "sep_id")


def check(config: TokensConfig, context: Context) -> list[Finding]:
    """Whether there are documents to train on, and whether the tokenizer can keep documents apart."""
    found: list[Finding] = []
    if "data" in context.inputs and count_documents(context.inputs["data"].path, "train") == 0:
        found.append(Finding("these documents leave none for training.", key="data"))
    if "tokenizer" in context.inputs:
        tokenizer = Tokenizer.load(context.inputs["tokenizer"].tokenizer_directory)
        if tokenizer.eos_id is None and tokenizer.cls_id is None:
            found.append(
                Finding(
                    "the tokenizer has neither an end-of-text token nor [CLS], so nothing would mark where texts end.",
                    key="tokenizer",
                    hint="Set `eos_token` in its tokenizer_config.json.",
                )
            )
    return found


def run(config: TokensConfig, context: Context) -> Outcome:
    """Write `train/`, `validation/`, `test/` (those that hold documents), `tokenizer/` and `report.json`.

    The end-of-text token follows each document where the tokenizer has one. Tokenizers that have none (WordPiece) put
    documents directly behind one another; the loader adds [CLS] and [SEP] to windows.

    Raises:
        DataError: a source that is named has no document, or none for training.
    """
    started = time.monotonic()
    start_over(context.directory)
    place = context.directory / TOKENIZER
    tokenizer = Tokenizer.load(context.inputs["tokenizer"].tokenizer_directory)
    tokenizer.save(place)
    cache = Cache(_work(config, context))
    cache.clear_unfinished()
    tasks = {split: _tasks(config, context, split, place, tokenizer.digest) for split in SPLITS}
    report: dict[str, Any] = {"splits": {}, "sources": {}}
    with open_engine(config.executor, cache, context.name, context.shard) as engine:
        results = iter(engine.run([task for split in SPLITS for task in tasks[split]]))
        for split in SPLITS:
            mine = [result for _, result in zip(tasks[split], results, strict=False) if result.facts["sources"]]
            if mine:
                with ShardWriter(
                    context.directory / split, describe(tokenizer), tokenizer.eos_id, config.shard_tokens
                ) as writer:
                    sources = join(mine, writer)
                report["splits"][split] = _row(writer.documents, writer.tokens, writer.text_bytes)
                report["sources"][split] = {name: _row(*sums) for name, sums in sources.items()}
        engine.wait_for_others()
    remove_signs(cache.root, context.name)
    _check_sources(config, context, report["sources"])
    if not config.work.keep:
        cache.remove([task.key for split in SPLITS for task in tasks[split]])
    write_json_atomic(context.directory / REPORT, report)
    return Outcome(
        content=[*(f"{split}/*" for split in SPLITS), f"{TOKENIZER}/*"],
        facts=Facts(
            "tokens",
            {
                "vocab_size": tokenizer.vocab_size,
                "splits": list(report["splits"]),
                "mask_token": tokenizer.mask_id is not None,
                "chat_template": tokenizer.chat_template is not None,
            },
        ),
        summary={
            "seconds": round(time.monotonic() - started, 3),
            "documents": sum(row["documents"] for row in report["splits"].values()),
            "tokens": sum(row["tokens"] for row in report["splits"].values()),
            "bytes_per_token": report["splits"]["train"]["bytes_per_token"],
        },
    )


def share(config: TokensConfig, context: Context) -> None:
    """Do the part of `context.shard` in the tasks, and write nothing but their results."""
    place = context.inputs["tokenizer"].tokenizer_directory
    digest = Tokenizer.load(place).digest
    cache = Cache(_work(config, context))
    cache.clear_unfinished()
    with suppress(WorkIsOverError), open_engine(config.executor, cache, context.name, context.shard) as engine:
        engine.run([task for split in SPLITS for task in _tasks(config, context, split, place, digest)])


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """What shards say of their tokenizer."""
    roles = {name: getattr(tokenizer, name) for name in _ROLES}
    return {
        "digest": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
        **roles,
        "special_ids": sorted(tokenizer.special_ids),
    }


def _tasks(config: TokensConfig, context: Context, split: str, tokenizer: Path, digest: str) -> list[Task]:
    """The tasks of a split: the digests of its files are those of the corpus' manifest."""
    data = context.inputs["data"]
    known = {} if data.artifact is None else {entry.path: entry.sha256 for entry in data.artifact.manifest.files}
    return [
        task
        for file in document_files(data.path, split)
        for task in plan_tasks(
            file,
            known.get(file.relative_to(data.path).as_posix()) or sha256_file(file),
            tokenizer,
            digest,
            config.sources,
        )
    ]


def _work(config: TokensConfig, context: Context) -> Path:
    """Where results of tasks are: outside of the stage's directory, which starts over when it was interrupted."""
    if config.work.folder is not None:
        return Path(config.work.folder)
    return context.directory.parent / f".{context.name}.work"


def _check_sources(config: TokensConfig, context: Context, found: Mapping[str, Mapping[str, Any]]) -> None:
    seen = {source for rows in found.values() for source in rows}
    for number, name in enumerate(config.sources or ()):
        if name not in seen:
            documents = read_documents(context.inputs["data"].path)
            raise DataError(
                f"no document comes from the source `{name}`.",
                where=context.place(f"sources.{number}"),
                hint=f"Sources: {', '.join(sorted({document.source for document in documents}))}.",
            )
    if "train" not in found:
        raise DataError("these sources leave no document for training.", where=context.place("sources"))


def _row(documents: int, tokens: int, text_bytes: int) -> dict[str, Any]:
    per_token = round(text_bytes / tokens, 4) if tokens else None
    return {"documents": documents, "tokens": tokens, "text_bytes": text_bytes, "bytes_per_token": per_token}
