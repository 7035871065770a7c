"""Small models of random weights with their tokenizers, and what filters say of texts by them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.data.cleaning.base import Dropped, Filter
from llmkit.data.cleaning.config import CleaningConfig
from llmkit.data.cleaning.pipeline import filters
from llmkit.model.initialization import build
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.store.documents import Document
from llmkit.tokenizer.templates import read_template
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.tokenizer.training import bpe_settings, train_bpe, train_wordpiece, wordpiece_settings

PROSE = [
    "The fox crosses the river at night, when nobody is there to see it.",
    "An owl sits on the old bridge and waits for the moon.",
    "In the morning the fox comes back over the bridge, and the owl is gone.",
    "The river carries leaves and the light of the moon down to the village.",
    "Nobody in the village has seen the fox, but everybody has heard the owl.",
]
CONTEXT = 24


@cache
def bpe() -> Tokenizer:
    return Tokenizer(train_bpe(lambda: PROSE, vocab_size=300), bpe_settings(read_template("chatml", None)))


@cache
def wordpiece() -> Tokenizer:
    return Tokenizer(train_wordpiece(lambda: PROSE, vocab_size=200), wordpiece_settings())


def save_random(place: Path, family: str, head: str | None = None, labels: Sequence[str] = ()) -> Path:
    """A model directory."""
    tokenizer = wordpiece() if family == "bert" else bpe()
    spec = ModelSpec(family=family, layers=2, width=32, heads=4, context=CONTEXT, init_std=0.2)
    eos = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    config = spec.resolve(
        tokenizer.vocab_size, pad_id=tokenizer.pad_id, bos_id=tokenizer.bos_id, eos_ids=eos, head=head, labels=labels
    )
    save_model(build(config, seed=3), place)
    tokenizer.save(place)
    return place


def make_filter(name: str, **settings: Any) -> Filter:
    """A filter as a config asks for it."""
    nothing = dict.fromkeys(CleaningConfig.model_fields)
    (found,) = filters(CleaningConfig.model_validate({**nothing, name: settings}))
    return found


def documents(texts: Sequence[str]) -> list[Document]:
    return [Document("", text, "s", "p") for text in texts]


def measure(found: Filter, texts: Sequence[str]) -> dict[str, list[Any]]:
    """The columns of a filter, which are those that it says it has."""
    measured = found.measure(documents(texts))
    assert list(measured) == list(found.columns)
    return {name: np.asarray(values).tolist() for name, values in measured.items()}


def verdicts(found: Filter, texts: Sequence[str]) -> list[Dropped | None]:
    """What a filter says of texts, by measures in the types that they are kept in."""
    types = {"string": object}
    measured = found.measure(documents(texts))
    return found.judge({name: np.array(measured[name], types.get(kind, kind)) for name, kind in found.columns.items()})


def reasons(found: Filter, texts: Sequence[str]) -> list[str | None]:
    """Why each text is dropped."""
    return [verdict and verdict.reason for verdict in verdicts(found, texts)]
