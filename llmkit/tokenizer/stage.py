"""The tokenizer stage: learn from documents, save, and report how many bytes a token stands for."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit.config.base import Facts, Finding
from llmkit.console import say
from llmkit.errors import DataError, LLMKitError
from llmkit.store.attempts import start_over
from llmkit.store.documents import Document, count_documents, read_documents, read_texts
from llmkit.store.files import write_json_atomic
from llmkit.store.stage import Context, Outcome
from llmkit.tokenizer.config import TokenizerConfig
from llmkit.tokenizer.templates import read_template
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.tokenizer.training import (
    blank_bpe,
    bpe_settings,
    masked_bpe_settings,
    train_bpe,
    train_wordpiece,
    wordpiece_settings,
)

DIRECTORY = "tokenizer"
REPORT = "report.json"
MEASURED_BYTES = 10_000_000
"""Text of each source that the report is measured on, at most."""
_BATCH = 256
_PROBE = (
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello yourself"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Goodbye"},
)


def check(config: TokenizerConfig, context: Context) -> list[Finding]:
    """Whether there is text to learn from, and the chat template renders and shows what the assistant says."""
    found = []
    data = context.inputs.get("data")
    if data is not None and count_documents(data.path, "train") == 0:
        found.append(Finding("the documents have no training part.", key="data"))
    template = chat_template(config, context)
    if template is not None:
        found += _check_template(config, template)
    return found


def run(config: TokenizerConfig, context: Context) -> Outcome:
    """Train the tokenizer, save it to `tokenizer/`, and write `report.json`."""
    started = time.monotonic()
    start_over(context.directory)
    sample = _sample(context.inputs["data"].path, config.max_bytes, context)
    say(f"{context.name}: learning {config.vocab_size:,} tokens from {sample.bytes / 1e6:,.1f} MB of text")
    tokenizer = _train(config, context, sample.texts)
    tokenizer.save(context.directory / DIRECTORY)
    measured = _measure(tokenizer, context.inputs["data"].path)
    report = {
        "algorithm": config.algorithm,
        "vocab_size_asked": config.vocab_size,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": {
            tokenizer.decode([token], skip_special=False): token for token in sorted(tokenizer.special_ids)
        },
        "training": {"documents": sample.documents, "bytes": sample.bytes, "share": sample.share},
        "compression": measured,
    }
    write_json_atomic(context.directory / REPORT, report)
    if tokenizer.vocab_size < config.vocab_size:
        say(f"{context.name}: the text gives {tokenizer.vocab_size:,} tokens of the {config.vocab_size:,} asked for")
    facts = {
        "vocab_size": tokenizer.vocab_size,
        "algorithm": config.algorithm,
        "chat_template": tokenizer.chat_template is not None,
        "mask_token": tokenizer.mask_id is not None,
    }
    summary = {
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": measured["all"]["bytes_per_token"],
        "training_bytes": sample.bytes,
        "seconds": time.monotonic() - started,
    }
    return Outcome([f"{DIRECTORY}/*"], Facts("tokenizer", facts), summary)


def chat_template(config: TokenizerConfig, context: Context) -> str | None:
    """The text of the template that the settings name; None where there is none."""
    if config.algorithm == "wordpiece" or config.masked or config.chat_template is None:
        return None
    file = context.inputs.get("chat_template")
    return read_template(config.chat_template, None if file is None else file.path)


def _check_template(config: TokenizerConfig, template: str) -> list[Finding]:
    try:
        tokenizer = Tokenizer(blank_bpe(config.special_tokens), bpe_settings(template))
        tokenizer.render(_PROBE[:1], add_generation_prompt=True)
    except LLMKitError as error:
        return [Finding(error.message, key="chat_template", hint=error.hint)]
    try:
        tokenizer.render_conversation(_PROBE)
    except DataError as error:
        message = f"models with this tokenizer cannot be fine-tuned on conversations: {error.message}"
        return [Finding(message, key="chat_template", hint=error.hint, severity="warning")]
    return []


def _train(config: TokenizerConfig, context: Context, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    if config.algorithm == "bpe":
        backend = train_bpe(
            texts,
            vocab_size=config.vocab_size,
            special_tokens=config.special_tokens,
            min_frequency=config.min_frequency,
            digits=config.digits,
            masked=config.masked,
        )
        settings = masked_bpe_settings() if config.masked else bpe_settings(chat_template(config, context))
        return Tokenizer(backend, settings)
    backend = train_wordpiece(
        texts,
        vocab_size=config.vocab_size,
        special_tokens=config.special_tokens,
        min_frequency=config.min_frequency,
        lowercase=config.lowercase,
    )
    return Tokenizer(backend, wordpiece_settings())


@dataclass(frozen=True)
class Sample:
    """The text to learn from: how to read it, how much it is, and its share of the training part."""

    texts: Callable[[], Iterable[str]]
    documents: int
    bytes: int
    share: float


def _sample(directory: Path, max_bytes: int | None, context: Context) -> Sample:
    """All training documents, or those whose keyed digest falls below the share of them that is wanted.

    Raises:
        DataError: nothing is left.
    """
    documents, size = _count(read_texts(directory, ["train"]))
    share = 1.0 if max_bytes is None or size <= max_bytes else max_bytes / size
    if share == 1.0:
        sample = Sample(lambda: read_texts(directory, ["train"]), documents, size, share)
    else:

        def chosen() -> Iterator[str]:
            for document in read_documents(directory, ["train"]):
                key = f"{context.seed}:tokenizer:{document.id}".encode()
                if int.from_bytes(hashlib.sha256(key).digest()[:8], "big") < share * 2**64:
                    yield document.text

        sample = Sample(chosen, *_count(chosen()), share)
    if sample.bytes == 0:
        hint = "Raise it." if share < 1 else None
        raise DataError(
            "no text is left to learn from.", where=context.place("max_bytes" if hint else "data"), hint=hint
        )
    return sample


def _count(texts: Iterable[str]) -> tuple[int, int]:
    documents = size = 0
    for text in texts:
        documents += 1
        size += len(text.encode())
    return documents, size


@dataclass
class Compression:
    """What a tokenizer makes of some text."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    unknown: int = 0

    def add(self, text: str, ids: list[int], unknown: int | None) -> None:
        """Count one document."""
        self.documents += 1
        self.bytes += len(text.encode())
        self.tokens += len(ids)
        self.unknown += ids.count(unknown) if unknown is not None else 0

    def row(self) -> dict[str, Any]:
        """The counts and their ratio."""
        return asdict(self) | {"bytes_per_token": self.bytes / self.tokens if self.tokens else None}


def _measure(tokenizer: Tokenizer, directory: Path) -> dict[str, Any]:
    """Bytes per token for each source, on held-out documents where there are any."""
    split = next((name for name in ("validation", "test") if count_documents(directory, name)), "train")
    total = Compression()
    sources: dict[str, Compression] = {}
    batch: list[Document] = []

    def flush() -> None:
        for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
            for counted in (total, sources[document.source]):
                counted.add(document.text, ids, tokenizer.unk_id)
        batch.clear()

    for document in read_documents(directory, [split]):
        if sources.setdefault(document.source, Compression()).bytes < MEASURED_BYTES:
            batch.append(document)
        if len(batch) == _BATCH:
            flush()
    flush()
    rows = {name: counted.row() for name, counted in sources.items()}
    return {"split": split, "all": total.row(), "sources": rows}
