"""Open a GGUF file in llmkit and in `transformers`, and compare perplexity and greedy continuations, in fp32.

    python scripts/verify_gguf.py model.gguf text.txt --tokens 65536

Perplexity is over windows that do not overlap, the first token of each not counted. The prompts are the first words of
paragraphs of the text. Exit code 1 where perplexities differ by more than 0.1%, or continuations at all.

Both models read the ids that llmkit's tokenizer gives. How many lines of the text have the same ids in `transformers`
is told, and no error where it is not all: it takes GPT-2's pre-tokenizer for names that it does not know, such as
"smollm", where llmkit (like llama.cpp) cuts texts as the model's own tokenizer.json does.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

import llmkit
from llmkit.console import emit_table, say

TOLERANCE = 1e-3
WORDS = 12


def main() -> None:
    """Compare, print a table, and exit with 1 where something differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="the GGUF file")
    parser.add_argument("text", type=Path, help="a text file")
    parser.add_argument("--tokens", type=int, help="use only so many tokens of the text")
    parser.add_argument("--window", type=int, default=1024, help="tokens of a window")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=32)
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)

    text = arguments.text.read_text(encoding="utf-8")
    ours = llmkit.load(str(arguments.model), dtype="fp32", device="cpu")
    folder, name = str(arguments.model.parent), arguments.model.name
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)

    ids = ours.tokenizer.encode(text)
    lines = text.splitlines(keepends=True)
    theirs = tokenizer(lines, add_special_tokens=False)["input_ids"]
    same = sum(map(list.__eq__, ours.tokenizer.encode_batch(lines), theirs))
    ids = ids[: arguments.tokens]
    with torch.inference_mode():
        perplexities = {
            "llmkit": perplexity(ours.model, ids, arguments.window),
            "transformers": perplexity(lambda batch: reference(batch).logits, ids, arguments.window),
        }
        equal, tokens = continuations(ours, reference, prompts_of(text, arguments.prompts), arguments.new_tokens)
    problems = []
    off = perplexities["llmkit"] / perplexities["transformers"] - 1
    if not abs(off) <= TOLERANCE:
        problems.append(f"The perplexities differ by {off:.2%}.")
    if equal < arguments.prompts:
        problems.append(f"{arguments.prompts - equal} continuations differ.")
    emit_table(
        ["", "llmkit", "transformers", "difference"],
        [
            ["token ids", f"{same:,} of {len(lines):,} lines equal", "", ""],
            [f"perplexity, {len(ids):,} tokens", *(f"{value:.5f}" for value in perplexities.values()), f"{off:+.5%}"],
            [f"greedy, {tokens} tokens", f"{equal} of {arguments.prompts} prompts equal", "", ""],
        ],
        title=name,
    )
    for problem in problems:
        say(problem)
    sys.exit(1 if problems else 0)


def perplexity(logits_of: Callable[[Tensor], Tensor], ids: list[int], window: int) -> float:
    """exp of the mean negative log-likelihood, the sum in float64."""
    total, count = 0.0, 0
    for start in range(0, len(ids), window):
        part = torch.tensor([ids[start : start + window]])
        if part.shape[1] > 1:
            losses = F.cross_entropy(logits_of(part)[0, :-1], part[0, 1:], reduction="none")
            total, count = total + losses.double().sum().item(), count + len(losses)
    return math.exp(total / count)


def prompts_of(text: str, count: int) -> list[str]:
    """The first words of paragraphs spread over the text."""
    long = [line.split() for line in text.splitlines() if len(line.split()) > 2 * WORDS]
    return [" ".join(words[:WORDS]) for words in long[:: max(len(long) // count, 1)][:count]]


def continuations(ours: llmkit.LoadedModel, reference: Any, prompts: list[str], length: int) -> tuple[int, int]:
    """How many greedy continuations are equal token for token, and the number of tokens of all."""
    ends = tuple(ours.model.config.eos_ids)
    answers = ours.generate(prompts, max_new_tokens=length, temperature=0.0, stop_ids=ends)
    equal = tokens = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        start = torch.tensor([ours.encode_prompt(prompt)])
        made = reference.generate(
            start, attention_mask=torch.ones_like(start), max_new_tokens=length, do_sample=False,
            eos_token_id=list(ends), pad_token_id=0,
        )[0, start.shape[1] :].tolist()  # fmt: skip
        tokens += len(made)
        if made == list(answer.token_ids):
            equal += 1
        else:
            say(f"{prompt!r}:\n  llmkit       {answer.token_ids}\n  transformers {made}")
    return equal, tokens


if __name__ == "__main__":
    main()
