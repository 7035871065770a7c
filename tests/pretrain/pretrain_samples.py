"""Small artifacts of tokens, whose text follows a known law. Run as a script it pretrains:

python pretrain_samples.py TOKENS OUTPUT key=value ...
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from llmkit.config.base import Facts
from llmkit.data.shards import ShardWriter
from llmkit.data.tokens_stage import describe
from llmkit.pretrain import stage
from llmkit.pretrain.config import PretrainConfig
from llmkit.store.stage import Context, Outcome, ResolvedInput
from llmkit.tokenizer.tokenizer import Tokenizer

WORDS = 12
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<end>"]
FIRST = len(SPECIALS)
ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "eos": "<end>"}

NEW_CAUSAL = {"family": "llama", "layers": 1, "width": 32, "heads": 2, "context": 32}
NEW_MASKED = {"family": "bert", "layers": 1, "width": 32, "heads": 2, "context": 32, "dropout": 0.1}


def tokenizer(**roles: str | None) -> Tokenizer:
    """A token for each of the words w0, w1, ... behind the special ones."""
    names = {name: word for name, word in {**ROLES, **roles}.items() if word is not None}
    words = [*SPECIALS, *(f"w{number}" for number in range(WORDS))]
    backend = Backend(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(list(names.values()))
    return Tokenizer(backend, {f"{name}_token": word for name, word in names.items()})


def chain() -> NDArray[np.float64]:
    """Transition probabilities of a Markov chain over the words: each is followed by one of three."""
    matrix = np.zeros((WORDS, WORDS))
    for word in range(WORDS):
        for step, probability in ((1, 0.7), (4, 0.2), (7, 0.1)):
            matrix[word, (word * 5 + step) % WORDS] += probability
    return matrix


def entropy() -> float:
    """Entropy of the next word given the one before, in nats: the least loss that any model can reach."""
    matrix = chain()
    values, vectors = np.linalg.eig(matrix.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary /= stationary.sum()
    logs = np.log(np.where(matrix > 0, matrix, 1))
    return float(-(stationary[:, None] * matrix * logs).sum())


def write_tokens(
    directory: Path, counts: dict[str, int] | None = None, using: Tokenizer | None = None, separator: int | None = None
) -> ResolvedInput:
    """An artifact of tokens drawn from the chain, one document a split."""
    using = using or tokenizer()
    using.save(directory / "tokenizer")
    rng = np.random.default_rng(0)
    matrix = chain().cumsum(1)
    for split, count in (counts or {"train": 8_000, "validation": 700}).items():
        words = [0]
        for draw in rng.random(count - 1):
            words.append(min(int(np.searchsorted(matrix[words[-1]], draw)), WORDS - 1))
        with ShardWriter(directory / split, describe(using), separator, 2**20) as writer:
            writer.write([word + FIRST for word in words], text_bytes=3 * count)
    return tokens_input(directory)


def tokens_input(directory: Path) -> ResolvedInput:
    splits = [split for split in ("train", "validation") if (directory / split).is_dir()]
    facts = Facts("tokens", {"vocab_size": FIRST + WORDS, "splits": splits, "mask_token": True, "chat_template": False})
    return ResolvedInput("data", "tokens", directory, "", facts)


def pretrain(directory: Path, *inputs: ResolvedInput, **settings: Any) -> Outcome:
    """Run the stage in a directory, with the checks before it."""
    directory.mkdir(parents=True, exist_ok=True)
    config = PretrainConfig.model_validate(
        {"data": "tokens", "model": NEW_CAUSAL, "precision": "fp32", "batch_size": 8, "steps": 20, **settings}
    )
    found = {given.key: given for given in inputs}
    context = Context("pretrain", 11, directory, found, "a.yaml:9: stages.pretrain")
    findings = [*config.check({key: given.facts for key, given in found.items()}), *stage.check(config, context)]
    assert [finding for finding in findings if finding.severity == "error"] == []
    return stage.run(config, context)


def main(arguments: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    settings = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in arguments[2:])}
    pretrain(Path(arguments[1]), tokens_input(Path(arguments[0])), **settings)


if __name__ == "__main__":
    main(sys.argv[1:])
