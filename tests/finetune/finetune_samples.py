"""Tiny models with tokenizers, and examples whose answers follow a rule."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from llmkit.config.base import Facts
from llmkit.finetune.config import FinetuneConfig
from llmkit.model.facts import read_model_facts
from llmkit.model.initialization import build
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.store.stage import Context, ResolvedInput
from llmkit.tokenizer.templates import read_template
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.tokenizer.training import blank_bpe, bpe_settings, train_wordpiece, wordpiece_settings

LETTERS = "abcd"
WORDS = ["".join(letters) for letters in itertools.product(LETTERS, repeat=4)]


def byte_tokenizer(template: str | None = "chatml") -> Tokenizer:
    """Special tokens 0-3, then a token for each byte."""
    return Tokenizer(blank_bpe(), bpe_settings(read_template(template, None) if template else None))


def letter_tokenizer() -> Tokenizer:
    """WordPiece whose pieces are letters, each text being letters with spaces between."""
    return Tokenizer(train_wordpiece(lambda: [" ".join(LETTERS)] * 9, vocab_size=30), wordpiece_settings())


def save_tiny(directory: Path, family: str = "llama", *, template: str | None = "chatml", **shape) -> Path:
    tokenizer = letter_tokenizer() if family == "bert" else byte_tokenizer(template)
    spec = ModelSpec(family=family, **{"layers": 2, "width": 32, "heads": 2, "context": 64, **shape})
    eos_ids = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    config = spec.resolve(tokenizer.vocab_size, pad_id=tokenizer.pad_id, bos_id=tokenizer.bos_id, eos_ids=eos_ids)
    save_model(build(config, seed=1), directory)
    tokenizer.save(directory)
    return directory


def write_rows(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def chat_rows() -> list[dict]:
    """The answer is the last letter of the word: four letters, so a quarter is right by chance."""
    return [
        {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": word[-1]}]} for word in WORDS
    ]


def label_rows() -> list[dict]:
    """The label is the second letter."""
    return [{"text": " ".join(word), "label": f"is {word[1]}"} for word in WORDS]


def make_context(directory: Path, model: Path, data: Path) -> Context:
    directory.mkdir(parents=True, exist_ok=True)
    facts = Facts("model", read_model_facts(model))
    inputs = {
        "model": ResolvedInput("model", str(model), model, "0", facts),
        "data": ResolvedInput("data", str(data), data, "1", Facts("file")),
    }
    return Context("sft", 7, directory, inputs, "a.yaml:9: stages.sft")


def settings(**values) -> FinetuneConfig:
    fixed = {"model": "m", "data": "d", "precision": "fp32", "device": "cpu"}
    return FinetuneConfig.model_validate({**fixed, **values})
