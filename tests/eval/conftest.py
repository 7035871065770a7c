from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from eval_tools import TEXTS, resolved

from llmkit.config.base import Facts
from llmkit.model.initialization import build
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.store.documents import Document, document_id, write_documents
from llmkit.store.stage import ResolvedInput
from llmkit.tokenizer.templates import read_template
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.tokenizer.training import bpe_settings, train_bpe, train_wordpiece, wordpiece_settings

MakeModel = Callable[..., ResolvedInput]


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    return Tokenizer(train_bpe(lambda: TEXTS, vocab_size=400), bpe_settings(read_template("chatml", None)))


@pytest.fixture(scope="session")
def other_bpe() -> Tokenizer:
    return Tokenizer(train_bpe(lambda: TEXTS[:20], vocab_size=300), bpe_settings(read_template("chatml", None)))


@pytest.fixture(scope="session")
def wordpiece() -> Tokenizer:
    return Tokenizer(train_wordpiece(lambda: TEXTS, vocab_size=300), wordpiece_settings())


@pytest.fixture
def make_model(tmp_path: Path, bpe: Tokenizer, wordpiece: Tokenizer) -> MakeModel:
    """Saves a random model with its tokenizer and gives it as an input."""

    def make(name: str, family: str = "llama", *, tokenizer: Tokenizer | None = None, **options: Any) -> ResolvedInput:
        head, labels, seed = options.pop("head", None), options.pop("labels", ()), options.pop("seed", 0)
        chosen = tokenizer or (wordpiece if family == "bert" else bpe)
        shape = {"layers": 2, "width": 32, "heads": 4, "context": 64, "init_std": 0.2, **options}
        eos = () if chosen.eos_id is None else (chosen.eos_id,)
        config = ModelSpec(family=family, **shape).resolve(
            chosen.vocab_size, pad_id=chosen.pad_id, bos_id=chosen.bos_id, eos_ids=eos, head=head, labels=labels
        )
        place = tmp_path / name
        save_model(build(config, seed=seed), place)
        chosen.save(place)
        return resolved(place)

    return make


@pytest.fixture
def documents(tmp_path: Path) -> ResolvedInput:
    """Documents of all three splits, some of them long, with text that is not ASCII."""
    texts = [f"{text}\nNaïve café № {index}." for index, text in enumerate(TEXTS)]
    splits = ("train", "test", "validation", "train")
    made = [
        Document(document_id(text), text, "source", str(index), split=splits[index % 4])
        for index, text in enumerate(texts)
    ]
    write_documents(tmp_path / "corpus", made)
    return resolved(tmp_path / "corpus", Facts("documents", {"splits": ["train", "validation", "test"]}))


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., ResolvedInput]:
    """Writes a folder with `train.jsonl` and `test.jsonl`."""

    def write(name: str, **splits: Iterable[Mapping[str, Any]]) -> ResolvedInput:
        place = tmp_path / name
        place.mkdir()
        for split, rows in splits.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (place / f"{split}.jsonl").write_text(text, encoding="utf-8")
        return resolved(place)

    return write
