from __future__ import annotations

import pytest
from tokenizer_samples import CHATML, TEXTS, with_template

from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.tokenizer.training import train_wordpiece, wordpiece_settings


@pytest.fixture(scope="session")
def chatml() -> Tokenizer:
    return with_template(CHATML)


@pytest.fixture(scope="session")
def wordpiece() -> Tokenizer:
    return Tokenizer(train_wordpiece(lambda: TEXTS, vocab_size=500), wordpiece_settings())
