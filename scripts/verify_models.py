"""Open every model of a run in `transformers` and compare logits and tokenizers with llmkit's.

    python scripts/verify_models.py runs/quickstart          (or one stage's folder, or a model directory)

Logits are those of a batch of random tokens in rows of different lengths, padded on the right, in float32; rows of
padding are not compared. Exit code 1 where logits differ by 1e-4 or more, weights are missing or left over, or the
tokenizers disagree.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from llmkit.console import emit_table, say
from llmkit.model.load import load_model
from llmkit.model.transformer import Transformer
from llmkit.tokenizer.tokenizer import Tokenizer

TOLERANCE = 1e-4
LONGEST = 96
CLASSES = {
    "ForCausalLM": transformers.AutoModelForCausalLM,
    "LMHeadModel": transformers.AutoModelForCausalLM,
    "ForMaskedLM": transformers.AutoModelForMaskedLM,
    "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
}
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "def greet(name: str) -> str:\n    return f'Hello, {name}! It is 2024.'\n",
    "Grüße aus Köln — “naïve café”, 12345.67 €, 你好 🙂\t end",
)
MESSAGES = [
    {"role": "user", "content": "What does `len` do?"},
    {"role": "assistant", "content": "It counts."},
    {"role": "user", "content": "And `sum`?"},
]


@dataclass(frozen=True)
class Comparison:
    """What came of opening a model directory in both.

    Args:
        architecture: the class that `transformers` made.
        difference: largest absolute difference of two logits.
        spread: standard deviation of the logits, to see the difference against.
        problems: everything that is not as it should be, as sentences.
    """

    architecture: str
    difference: float
    spread: float
    problems: list[str]


def compare(directory: Path) -> Comparison:
    """Open a model directory in llmkit and in `transformers`, and hold one against the other."""
    architecture = json.loads((directory / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    opener = next(opener for ending, opener in CLASSES.items() if architecture.endswith(ending))
    theirs, loading = opener.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    problems = [f"{what}: {sorted(names)}" for what, names in loading.items() if names]
    if type(theirs).__name__ != architecture:
        problems.append(f"transformers makes a {type(theirs).__name__}")
    ours = load_model(directory, dtype=torch.float32)
    difference, spread = _difference(ours, theirs.eval())
    if not difference < TOLERANCE:
        problems.append(f"logits differ by {difference:.2g}")
    return Comparison(architecture, difference, spread, problems + _tokenizer_problems(directory))


@torch.no_grad()
def _difference(ours: Transformer, theirs: Any) -> tuple[float, float]:
    """Largest difference of two logits of the same batch, and their spread."""
    input_ids, mask = _batch(ours)
    our_logits: Tensor = ours(input_ids, mask)
    their_logits: Tensor = theirs(input_ids=input_ids, attention_mask=mask).logits
    if our_logits.dim() == 1:
        their_logits = their_logits.squeeze(-1)
    if our_logits.shape != their_logits.shape:
        return float("inf"), 0.0
    if our_logits.dim() == 3:
        our_logits, their_logits = our_logits[mask.bool()], their_logits[mask.bool()]
    return float((our_logits - their_logits).abs().max()), float(our_logits.std())


def _batch(model: Transformer) -> tuple[Tensor, Tensor]:
    """Random ids and their mask, both [4, L], in rows of four lengths."""
    longest = min(model.config.context, LONGEST)
    lengths = torch.tensor([longest, longest * 2 // 3, longest // 3, 2])
    pad = model.config.pad_id or 0
    input_ids = torch.randint(0, model.config.vocab_size - 1, (4, longest), generator=torch.Generator().manual_seed(1))
    input_ids += input_ids >= pad
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return torch.where(mask.bool(), input_ids, pad), mask


def _tokenizer_problems(directory: Path) -> list[str]:
    ours, theirs = Tokenizer.load(directory), transformers.AutoTokenizer.from_pretrained(directory)
    problems = []
    for text in TEXTS:
        ids = ours.encode(text)
        if theirs.encode(text, add_special_tokens=False) != ids:
            problems.append(f"other ids for {text!r}")
        elif theirs.decode(ids, skip_special_tokens=True) != ours.decode(ids):
            problems.append(f"other text for the ids of {text!r}")
    if (theirs.chat_template is None) != (ours.chat_template is None):
        problems.append("one has a chat template, the other has none")
    elif ours.chat_template is not None:
        rendered = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
        if rendered != ours.render(MESSAGES, add_generation_prompt=True):
            problems.append("the chat template renders another text")
        ids = theirs.encode(rendered, add_special_tokens=False)
        if ids != ours.render_conversation(MESSAGES, add_generation_prompt=True).ids:
            problems.append("a conversation has other ids")
    return problems


def model_directories(path: Path) -> list[Path]:
    """The model directories of a run, of a stage, or the one that the path itself is."""
    if (path / "config.json").is_file():
        return [path]
    return sorted(found.parent for found in [*path.glob("model/config.json"), *path.glob("*/model/config.json")])


def main() -> int:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, a stage's, or a model directory")
    directories = model_directories(parser.parse_args().run)
    if not directories:
        say("there is no model here.")
        return 2
    transformers.utils.logging.disable_progress_bar()
    found = {directory: compare(directory) for directory in directories}
    rows = [
        [str(directory), one.architecture, one.difference, one.spread, "; ".join(one.problems) or "none"]
        for directory, one in found.items()
    ]
    emit_table(["model", "opened as", "largest difference", "spread of logits", "problems"], rows)
    return int(any(one.problems for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
