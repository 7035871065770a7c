from __future__ import annotations

from pathlib import Path

import pytest
import rlhf_worlds as worlds

from llmkit.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return worlds.make_tokenizer()


@pytest.fixture(scope="session")
def base(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that knows nothing."""
    return worlds.save(worlds.make_model(tokenizer), tokenizer, tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="session")
def speaker(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that answers with three random words, one in ten of which is red."""
    model = worlds.teach_words(worlds.make_model(tokenizer), tokenizer)
    return worlds.save(model, tokenizer, tmp_path_factory.mktemp("speaker") / "model")
