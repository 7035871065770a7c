"""Fine-tuning through an adapter: what is trained, saved, counted and refused; and that a killed run ends alike."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from finetune_samples import byte_tokenizer, chat_rows, label_rows, make_context, save_tiny, settings, write_rows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import llmkit.finetune.stage as stage
from llmkit import load
from llmkit.config.base import Facts
from llmkit.finetune.objectives import ChatObjective
from llmkit.model.load import load_model
from llmkit.store.stage import Context
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.train.memory.machines import named_machine

H100 = named_machine("h100")

ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "llmkit.json"}
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json"}


def run(directory: Path, model: Path, rows: list[dict], **values) -> Context:
    context = make_context(directory, model, write_rows(directory.parent / "d.jsonl", rows))
    stage.run(settings(**values), context)
    return context


def conversation(word: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": word}]


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_peft_computes_what_was_trained(kind: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "m")
    adapter = {"kind": kind, "rank": 8, "alpha": 16, "trainable": ["embeddings.token"]}
    rows = chat_rows()[:128]
    context = run(
        tmp_path / "out", base, rows, batch_size=32, steps=12, optimizer={"lr": 1e-2}, log_every=50, adapter=adapter
    )
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        logits, before = load_model(context.directory / "model")(ids), load_model(base)(ids)
        theirs = peft.PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), context.directory / "adapter"
        ).eval()
        torch.testing.assert_close(theirs(input_ids=ids).logits, logits, rtol=0, atol=1e-4)
    assert float((logits - before).abs().max()) > 0.1
    assert {path.name for path in (context.directory / "adapter").iterdir()} == ADAPTER_FILES | TOKENIZER_FILES


def test_a_checkpoint_holds_the_adapter_alone_and_can_be_used(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "m")
    context = run(tmp_path / "out", base, chat_rows()[:64], batch_size=8, steps=4, checkpoints={"every": 2}, adapter={})
    folder = context.directory / "checkpoints" / "step-00000004"
    assert {path.name for path in (folder / "model").iterdir()} == ADAPTER_FILES | TOKENIZER_FILES
    weights = load_file(folder / "trainer" / "weights-00000.safetensors")
    assert weights and all(name.endswith((".adapter.a", ".adapter.b")) for name in weights)
    optimizer = load_file(folder / "trainer" / "optimizer-00000.safetensors")
    assert {name.partition(":")[2] for name in optimizer} == set(weights)
    opened = load(str(folder / "model"), device="cpu").model
    ids = torch.arange(4, 24)[None]
    torch.testing.assert_close(opened(ids), load_model(context.directory / "model")(ids), rtol=0, atol=1e-5)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("adapter", "precision"),
    [
        ({"kind": "lora", "dropout": 0.1}, "fp32"),
        ({"kind": "dora", "base_dtype": "bf16", "trainable": ["*norm"]}, "auto"),
        ({"kind": "rslora", "base_dtype": "nf4", "trainable": ["embeddings.token"]}, "auto"),
    ],
)
def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(adapter, precision, tmp_path, monkeypatch) -> None:
    model, data = save_tiny(tmp_path / "m", width=64), write_rows(tmp_path / "d.jsonl", chat_rows())
    config = settings(
        batch_size=32,
        micro_batch_size=16,
        steps=6,
        checkpoints={"every": 2},
        evaluate_every=3,
        adapter=adapter,
        precision=precision,
    )
    straight = make_context(tmp_path / "straight", model, data)
    stage.run(config, straight)
    killed = make_context(tmp_path / "killed", model, data)
    calls = []

    class Deadly(ChatObjective):
        def loss(self, model, batch):
            calls.append(1)
            if len(calls) == 12:
                raise Killed
            return super().loss(model, batch)

    monkeypatch.setattr(stage, "ChatObjective", Deadly)
    with pytest.raises(Killed):
        stage.run(config, killed)
    monkeypatch.undo()
    assert any((killed.directory / "checkpoints").iterdir())
    stage.run(config, killed)
    for folder in ("model", "adapter"):
        files = sorted(path.name for path in (straight.directory / folder).iterdir())
        assert len(files) >= 5
        for name in files:
            left, right = (each.directory / folder / name for each in (straight, killed))
            assert left.read_bytes() == right.read_bytes(), name


def test_the_adapter_alone(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "m")
    rows = chat_rows()[:64]
    merged = run(tmp_path / "a" / "out", base, rows, batch_size=8, steps=3, adapter={})
    context = make_context(tmp_path / "b" / "out", base, write_rows(tmp_path / "b" / "d.jsonl", rows))
    config = settings(batch_size=8, steps=3, adapter={"merge": False})
    outcome = stage.run(config, context)
    assert outcome.facts.kind == config.facts({"model": context.inputs["model"].facts, "data": Facts("file")}).kind
    assert outcome.facts.kind == "adapter"
    assert not (context.directory / "adapter").exists()
    opened = load(str(context.directory), device="cpu")
    ids = torch.arange(4, 24)[None]
    torch.testing.assert_close(opened.model(ids), load_model(merged.directory / "model")(ids), rtol=0, atol=1e-5)
    assert opened.tokenizer.chat_template is not None
    assert opened.generate(conversation("abcd"), max_new_tokens=2, temperature=0.0)


def test_a_new_classifier_is_trained_with_the_adapter(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "m", "bert")
    context = run(
        tmp_path / "out",
        base,
        label_rows(),
        task="classification",
        batch_size=32,
        epochs=8,
        optimizer={"lr": 2e-2},
        adapter={"rank": 8, "alpha": 16},
    )
    ids = torch.tensor([[2, 8, 7, 6, 9, 3]])
    ours = load_model(context.directory / "model")(ids)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=4)
    theirs = peft.PeftModel.from_pretrained(model, context.directory / "adapter").eval()
    torch.testing.assert_close(theirs(input_ids=ids).logits, ours, rtol=0, atol=1e-4)
    opened = load(str(context.directory / "adapter"), device="cpu").model
    assert opened.config.labels == ("is a", "is b", "is c", "is d")
    torch.testing.assert_close(opened(ids), ours, rtol=0, atol=1e-4)
    lines = [json.loads(line) for line in (context.directory / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["split"] == "validation" and lines[-1]["accuracy"] > 0.8


@pytest.mark.parametrize("adapter", [None, {"rank": 4}])
def test_new_tokens_everywhere(adapter, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "m")
    known = byte_tokenizer().vocab_size
    context = run(
        tmp_path / "out",
        base,
        chat_rows()[:64],
        batch_size=8,
        steps=3,
        adapter=adapter,
        add_tokens=["<|think|>", "<|im_end|>", "<|answer|>"],
    )
    tokenizer = Tokenizer.load(context.directory / "model")
    assert tokenizer.vocab_size == known + 2  # one of the three was there
    assert {known, known + 1} <= tokenizer.special_ids
    model = load_model(context.directory / "model")
    assert model.config.vocab_size == known + 2
    theirs = AutoModelForCausalLM.from_pretrained(context.directory / "model").eval()
    ids = torch.tensor([[known, known + 1, 7, 8]])
    torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=0, atol=1e-4)
    if adapter is None:
        return
    opened = load(str(context.directory / "adapter"), device="cpu")
    assert opened.tokenizer.vocab_size == known + 2
    torch.testing.assert_close(opened.model(ids), model(ids), rtol=0, atol=1e-5)
    resized = AutoModelForCausalLM.from_pretrained(base)
    resized.resize_token_embeddings(known + 2)
    wrapped = peft.PeftModel.from_pretrained(resized, context.directory / "adapter").eval()
    torch.testing.assert_close(wrapped(input_ids=ids).logits, model(ids), rtol=0, atol=1e-4)


def test_a_built_in_template_brings_its_tokens(tmp_path: Path) -> None:
    assert settings(chat_template="chatml").new_tokens() == ("<|im_start|>", "<|im_end|>")
    assert settings(chat_template="chatml", add_tokens=[]).new_tokens() == ()
    assert settings(chat_template="{{ messages }}").new_tokens() == ()
    known = Facts("model", {"vocab_size": 50, "parameters": 9, "head": "causal-lm"})
    grown = settings(chat_template="chatml").facts({"model": known, "data": Facts("file")})
    assert grown.get("vocab_size") is None and grown.get("parameters") is None


LINEARS = {"attention.query": [64, 32], "mlp.up": [64, 128]}
KNOWN = Facts("model", {"head": "causal-lm", "linears": LINEARS, "layers": 3, "parameters": 100_000, "context": 64})


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"adapter": {"targets": ["mlp.upp"]}}, "adapter", "`mlp.upp` matches no linear map"),
        ({"adapter": {"layers": "1-3"}}, "adapter", "there is no block 3"),
        ({"adapter": {"base_dtype": "bf16"}, "precision": "fp32"}, "adapter.base_dtype", "computes in bf16"),
    ],
)
def test_impossible_adapters_are_found_before_any_work(values: dict, key: str, words: str) -> None:
    found = [each for each in settings(**values).check({"model": KNOWN, "data": Facts("file")}) if each.key == key]
    assert len(found) == 1 and words in found[0].message
    fine = settings(adapter={"targets": ["mlp.*", "head.transform"]})
    assert not list(fine.check({"model": KNOWN, "data": Facts("file")}))


def test_the_plan_counts_frozen_weights_once() -> None:
    config = settings(adapter={"rank": 2, "base_dtype": "bf16"}, steps=10, batch_size=4, max_length=50)
    found = stage.plan(config, {"model": KNOWN}, H100)
    trained = 3 * 2 * (64 + 32 + 64 + 128)
    assert found.parameters == trained
    assert found.memory_bytes == {
        "frozen weights": 200_000,
        "adapter": 4 * trained,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
    }
    # Forward, and backward to the inputs, 2 FLOPs a weight each; gradients of what is trained besides.
    assert found.flops == 2000 * (4 * 100_000 + 2 * trained)
    whole = stage.plan(settings(steps=10, batch_size=4, max_length=50), {"model": KNOWN}, H100)
    assert whole.flops == 2000 * 6 * 100_000
