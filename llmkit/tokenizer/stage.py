"""The tokenizer stage: learn from documents, save, and report how many bytes a token stands for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from llmkit.config.base import Facts, Finding
from llmkit.console import emit_table, say
from llmkit.errors import DataError, LLMKitError
from llmkit.store.attempts import start_over
from llmkit.store.documents import count_documents
from llmkit.store.files import write_json_atomic
from llmkit.store.stage import Context, Outcome
from llmkit.tokenizer.compression import comparison_rows, measure
from llmkit.tokenizer.config import TokenizerConfig
from llmkit.tokenizer.sampling import choose_sample
from llmkit.tokenizer.templates import read_template
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.tokenizer.training import (
    blank_bpe,
    bpe_settings,
    masked_bpe_settings,
    train_bpe,
    train_unigram,
    train_wordpiece,
    wordpiece_settings,
)

DIRECTORY = "tokenizer"
REPORT = "report.json"
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
    sample = choose_sample(config, context)
    say(f"{context.name}: learning {config.vocab_size:,} tokens from {sample.bytes / 1e6:,.1f} MB of text")
    tokenizer = _train(config, context, sample.texts)
    tokenizer.save(context.directory / DIRECTORY)
    tokenizers = {context.name: tokenizer, **_others(config, context)}
    split, measured = measure(tokenizers, context.inputs["data"].path)
    compression = measured[context.name]
    report = {
        "algorithm": config.algorithm,
        "vocab_size_asked": config.vocab_size,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": {
            tokenizer.decode([token], skip_special=False): token for token in sorted(tokenizer.special_ids)
        },
        "training": {
            "documents": sample.documents,
            "bytes": sample.bytes,
            "share": sample.share,
            "sources": dict(sample.sources),
        },
        "compression": {"split": split, **compression},
    }
    if len(measured) > 1:
        report["comparison"] = measured
        emit_table(*comparison_rows(measured), title=f"Bytes per token ({split} split)")
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
        "bytes_per_token": compression["all"]["bytes_per_token"],
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
    if config.algorithm != "wordpiece":
        rules: dict[str, Any] = {
            "vocab_size": config.vocab_size,
            "special_tokens": config.special_tokens,
            "digits": config.digits,
            "whitespace": config.whitespace,
            "masked": config.masked,
        }
        if config.algorithm == "bpe":
            backend = train_bpe(texts, min_frequency=config.min_frequency, **rules)
        else:
            backend = train_unigram(texts, **rules)
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


def _others(config: TokenizerConfig, context: Context) -> dict[str, Tokenizer]:
    """The tokenizers to compare with, each under a name of its own."""
    found: dict[str, Tokenizer] = {}
    for number, _ in enumerate(config.compare):
        given = context.inputs[f"compare.{number}"]
        name = given.label
        while name == context.name or name in found:
            name += "'"
        found[name] = Tokenizer.load(given.tokenizer_directory)
    return found
