"""Small worlds to align in: a tokenizer, models that know nothing, examples with planted answers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from llmkit.config.base import Facts
from llmkit.model.config import Head
from llmkit.model.facts import read_model_facts
from llmkit.model.initialization import build
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer
from llmkit.rlhf.config import RLHFConfig
from llmkit.store.stage import Context, ResolvedInput
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.tokenizer.training import bpe_settings, train_bpe
from llmkit.train.engine import Engine

# One token a word and one for the end of turn, so that few steps teach much.
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_start|>{% endif %}{% endfor %}"
)
WORDS = [f" {word}" for word in ["red", "blue", "green", "grey", "pink", "gold", "teal", "plum", "lime", "rust"]]


def make_tokenizer() -> Tokenizer:
    texts = ["".join(WORDS)] * 20
    return Tokenizer(train_bpe(lambda: texts, vocab_size=330), bpe_settings(TEMPLATE))


def make_model(tokenizer: Tokenizer, *, head: Head = "causal-lm", width: int = 32, seed: int = 3) -> Transformer:
    spec = ModelSpec(family="llama", layers=2, width=width, heads=2, context=48)
    end = tokenizer.end_of_turn_id
    assert end is not None
    config = spec.resolve(tokenizer.vocab_size, pad_id=tokenizer.pad_id, eos_ids=(end,), head=head)
    return build(config, seed=seed)


def teach_words(model: Transformer, tokenizer: Tokenizer) -> Transformer:
    """The model once it answers anything with three random words and ends there."""
    generator = random.Random(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        said = [{"role": "assistant", "content": "".join(generator.choices(WORDS, k=3))} for _ in range(64)]
        rows = [tokenizer.render_conversation([*question(generator), answer]).ids for answer in said]  # type: ignore[list-item]
        ids = torch.tensor(rows)
        logits = model(ids[:, :-1])[:, -4:]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -4:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def save(model: Transformer, tokenizer: Tokenizer, directory: Path) -> Path:
    save_model(model, directory)
    tokenizer.save(directory)
    return directory


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def question(generator: random.Random) -> list[dict[str, str]]:
    return [{"role": "user", "content": "".join(generator.choices(WORDS, k=3))}]


def conversations(count: int, answer: str, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts of three words, all with the same reference answer."""
    generator = random.Random(seed)
    return [
        {"messages": [*question(generator), {"role": "assistant", "content": answer}], "task": "colour"}
        for _ in range(count)
    ]


def preferences(count: int, better: str = " red", seed: int = 0) -> list[dict[str, Any]]:
    """Of two answers of three words, the one with the word `better` in it is preferred."""
    generator, others = random.Random(seed), [word for word in WORDS if word != better]
    rows = []
    for _ in range(count):
        chosen, rejected = generator.choices(others, k=3), generator.choices(others, k=3)
        chosen[generator.randrange(3)] = better
        rows.append({"prompt": question(generator), "chosen": "".join(chosen), "rejected": "".join(rejected)})
    return rows


def context(directory: Path, model: Path, data: Path, reward_model: Path | None = None, seed: int = 11) -> Context:
    directory.mkdir(parents=True, exist_ok=True)
    # As an interrupted attempt leaves it: measuring the machine takes longer than these trainings.
    engine = Engine("cpu", 1, "fp32", "for tests", 1e9)
    (directory / "engine.json").write_text(json.dumps(asdict(engine)), encoding="utf-8")
    inputs = {
        "model": ResolvedInput("model", str(model), model, "m", Facts("model", read_model_facts(model))),
        "data": ResolvedInput("data", str(data), data, "d", Facts("file", {"suffix": data.suffix})),
    }
    if reward_model is not None:
        facts = Facts("model", read_model_facts(reward_model))
        inputs["reward_model"] = ResolvedInput("reward_model", str(reward_model), reward_model, "r", facts)
    return Context("aligned", seed, directory, inputs, "a.yaml:1: stages.aligned")


def settings(algorithm: str, **values: Any) -> RLHFConfig:
    given = {"model": "m", "data": "d", "precision": "fp32", "device": "cpu", **values}
    return RLHFConfig.model_validate({"algorithm": algorithm, **given})


def metrics(directory: Path, split: str) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]
