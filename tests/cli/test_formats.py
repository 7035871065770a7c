"""`llmkit import` and `llmkit export`: a model through every format and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

import llmkit
from llmkit.cli.main import app
from llmkit.data.shards import ShardWriter
from llmkit.model.initialization import build
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.tokenizer.training import bpe_settings, train_bpe

TEXTS = ("the cat sat on the mat, and the hat was flat", "a dog ran 12 miles\n in 3 hours") * 4
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    tokenizer = Tokenizer(train_bpe(lambda: TEXTS, vocab_size=300), bpe_settings(TEMPLATE))
    spec = ModelSpec(family="llama", layers=2, width=32, heads=4, context=64)
    ids = {"pad_id": tokenizer.pad_id, "bos_id": tokenizer.bos_id, "eos_ids": (tokenizer.eos_id,)}
    save_model(build(spec.resolve(tokenizer.vocab_size, **ids), seed=3), folder)
    tokenizer.save(folder)
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_a_model_goes_through_gguf_and_comes_back(source: Path, tmp_path: Path) -> None:
    file, back = tmp_path / "model.gguf", tmp_path / "back"
    assert run("export", source, file, "--type", "f32", "--pre-tokenizer", "smaug-bpe")[0] == 0
    assert run("import", file, back)[0] == 0
    before, after = llmkit.load(str(source), device="cpu"), llmkit.load(str(back), device="cpu")
    ours, theirs = before.model.state_dict(), after.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert after.tokenizer.encode(TEXTS[1]) == before.tokenizer.encode(TEXTS[1])
    assert after.tokenizer.chat_template == TEMPLATE
    assert after.model.config.eos_ids == before.model.config.eos_ids
    assert transformers.AutoTokenizer.from_pretrained(back)(TEXTS[0])["input_ids"] == before.tokenizer.encode(TEXTS[0])
    assert transformers.AutoModelForCausalLM.from_pretrained(back).config.vocab_size == before.tokenizer.vocab_size


def test_the_split_that_llama_cpp_lacks_is_told(source: Path, tmp_path: Path) -> None:
    code, output = run("export", source, tmp_path / "model.gguf")
    assert code == 2 and "--pre-tokenizer names one" in output
    assert not list(tmp_path.iterdir())


def test_a_directory_is_written_in_another_dtype(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "half"
    assert run("export", source, target, "--format", "hf", "--dtype", "bf16")[0] == 0
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"
    assert {"model.safetensors", "tokenizer.json", "generation_config.json"} <= {path.name for path in target.iterdir()}
    code, output = run("import", source, target)
    assert code == 2 and "something here already" in output


def test_models_are_averaged(source: Path, tmp_path: Path) -> None:
    start = llmkit.load(str(source), device="cpu").model
    folders = [source]
    for seed in (1, 2):
        folders.append(tmp_path / str(seed))
        save_model(build(start.config, seed=seed), folders[-1])
    options = ("--average", folders[1], "--average", folders[2])
    assert run("export", source, tmp_path / "mean", "--format", "hf", *options)[0] == 0
    stored = [load_file(folder / "model.safetensors") for folder in (*folders, tmp_path / "mean")]
    for name, mean in stored[-1].items():
        expected = sum(each[name].double() for each in stored[:3]) / 3
        torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-8)
    assert (tmp_path / "mean" / "tokenizer.json").is_file()
    other = ModelSpec(family="llama", layers=1, width=32, heads=4, context=64).resolve(300, pad_id=None)
    save_model(build(other, seed=0), tmp_path / "other")
    code, output = run("export", source, tmp_path / "bad", "--format", "hf", "--average", tmp_path / "other")
    assert code == 2 and "another architecture" in output
    code, output = run("export", source, tmp_path / "model.gguf", "--average", folders[1])
    assert code == 2 and "--average is of directories" in output


def test_pickled_weights_come_in(source: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    torch.save(transformers.AutoModelForCausalLM.from_pretrained(source).state_dict(), old / "pytorch_model.bin")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (old / name).write_bytes((source / name).read_bytes())
    assert run("import", old, tmp_path / "new")[0] == 0
    ours = llmkit.load(str(source), device="cpu").model.state_dict()
    theirs = llmkit.load(str(tmp_path / "new"), device="cpu").model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_options_that_mean_nothing_are_refused(source: Path, tmp_path: Path) -> None:
    for options in (("--format", "hf", "--type", "f16"), ("--format", "gguf", "--dtype", "bf16"), ("--dtype", "f8")):
        code, _ = run("export", source, tmp_path / "out", *options)
        assert code == 2 and not (tmp_path / "out").exists()
    for wrong in ("nowhere", "none.gguf"):
        code, output = run("import", tmp_path / wrong, tmp_path / "out")
        assert code == 2 and "no such" in output


def test_an_adapter_is_merged(source: Path, tmp_path: Path) -> None:
    from llmkit.model.adapters.attach import attach
    from llmkit.model.adapters.config import AdapterConfig
    from llmkit.model.adapters.peft import save_adapter

    model = llmkit.load(str(source), device="cpu").model
    attach(model, AdapterConfig(rank=2), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    ids = torch.randint(4, 100, (1, 12))
    save_adapter(model, tmp_path / "adapter")
    file = tmp_path / "merged.gguf"
    code, output = run(
        "export", source, file, "--type", "f32", "--pre-tokenizer", "smaug-bpe", "--adapter", tmp_path / "adapter"
    )
    assert code == 0, output
    with torch.no_grad():
        expected = model(ids)
        found = llmkit.load(str(file), device="cpu").model(ids)
        plain = llmkit.load(str(source), device="cpu").model(ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (plain - expected).abs().max() > 1e-3


def test_tokens_are_exported(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "tokens/train", {"digest": "d", "vocab_size": 9}, 0, 100) as writer:
        writer.write([1, 2], 2)
    assert run("export", tmp_path / "tokens", tmp_path / "out", "--format", "megatron")[0] == 0
    assert (tmp_path / "out/train.bin").read_bytes() == bytes([1, 0, 2, 0, 0, 0])
    assert run("export", tmp_path / "tokens", tmp_path / "rows", "--format", "datasets")[0] == 0
    assert (tmp_path / "rows/dataset_dict.json").is_file()
    code, output = run("export", tmp_path / "tokens", tmp_path / "more", "--format", "datasets", "--dtype", "bf16")
    assert (code, "the other options are of models" in output) == (2, True)
    code, output = run("export", tmp_path / "nothing", tmp_path / "more", "--format", "megatron")
    assert (code, "no such directory" in output) == (2, True)
