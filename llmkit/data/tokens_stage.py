"""The stage `tokens`: documents to token shards."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from llmkit.config.base import Facts, Finding
from llmkit.console import Progress, progress
from llmkit.data.shards import ShardWriter
from llmkit.data.tokens_config import TokensConfig
from llmkit.store.attempts import start_over
from llmkit.store.documents import Document, count_documents, read_documents
from llmkit.store.files import write_json_atomic
from llmkit.store.splits import SPLITS
from llmkit.store.stage import Context, Outcome
from llmkit.tokenizer.tokenizer import Tokenizer

TOKENIZER = "tokenizer"
REPORT = "report.json"
_ROLES = ("pad_id", "bos_id", "eos_id", "unk_id", "mask_id", "cls_id", "sep_id")
_BATCH_DOCUMENTS = 512
_BATCH_CHARACTERS = 1 << 20


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
    """
    started = time.monotonic()
    start_over(context.directory)
    documents = context.inputs["data"].path
    tokenizer = Tokenizer.load(context.inputs["tokenizer"].tokenizer_directory)
    tokenizer.save(context.directory / TOKENIZER)
    counts = {split: count_documents(documents, split) for split in SPLITS}
    report: dict[str, Any] = {"splits": {}, "sources": {}}
    with progress(f"{context.name}: documents", total=sum(counts.values())) as bar:
        for split in SPLITS:
            if counts[split]:
                place = context.directory / split
                with ShardWriter(place, describe(tokenizer), tokenizer.eos_id, config.shard_tokens) as writer:
                    sources = _write(writer, tokenizer, read_documents(documents, (split,)), bar)
                report["splits"][split] = _row(writer.documents, writer.tokens, writer.text_bytes)
                report["sources"][split] = {name: _row(*sums) for name, sums in sorted(sources.items())}
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
            "documents": sum(counts.values()),
            "tokens": sum(row["tokens"] for row in report["splits"].values()),
            "bytes_per_token": report["splits"]["train"]["bytes_per_token"],
        },
    )


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """What shards say of their tokenizer."""
    roles = {name: getattr(tokenizer, name) for name in _ROLES}
    return {
        "digest": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
        **roles,
        "special_ids": sorted(tokenizer.special_ids),
    }


def _write(
    writer: ShardWriter, tokenizer: Tokenizer, documents: Iterable[Document], bar: Progress
) -> dict[str, list[int]]:
    """Write a split; gives documents, tokens and bytes of text by source."""
    sources: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for batch in _batches(documents):
        encoded = tokenizer.encode_batch([document.text for document in batch])
        for document, ids in zip(batch, encoded, strict=True):
            size = len(document.text.encode())
            before = writer.tokens
            writer.write(ids, size)
            for index, amount in enumerate((1, writer.tokens - before, size)):
                sources[document.source][index] += amount
        bar.advance(len(batch), note=f"{writer.tokens:,} tokens")
    return sources


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch = []
            characters = 0
    if batch:
        yield batch


def _row(documents: int, tokens: int, text_bytes: int) -> dict[str, Any]:
    per_token = round(text_bytes / tokens, 4) if tokens else None
    return {"documents": documents, "tokens": tokens, "text_bytes": text_bytes, "bytes_per_token": per_token}
