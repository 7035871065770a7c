"""A whole directory saved from Python: every part of it opened by transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

import llmkit
from llmkit.errors import ConfigError
from llmkit.model.initialization import build
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.tokenizer.tokenizer import Tokenizer

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
CHAT = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model with its tokenizer, as somebody else left it: two end tokens and settings of generation."""
    pieces = ["<|end|>", "<|stop|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Backend(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    Tokenizer(backend, {"eos_token": "<|end|>", "chat_template": TEMPLATE}).save(tmp_path / "theirs")
    spec = ModelSpec(family="llama", layers=2, width=16, heads=2, context=64)
    model = build(spec.resolve(len(pieces), pad_id=0, eos_ids=(0,)), seed=1)
    save_model(model, tmp_path / "theirs", generation={"eos_token_id": [0, 1], "temperature": 0.6, "top_p": 0.9})
    return tmp_path / "theirs"


@torch.no_grad()
def test_a_loaded_model_is_saved_whole(directory: Path, tmp_path: Path) -> None:
    opened = llmkit.load(str(directory), device="cpu")
    assert opened.sampling().stop_ids == (0, 1)
    opened.save(tmp_path / "ours", max_shard_size=4000)
    assert (tmp_path / "ours" / "model.safetensors.index.json").exists()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert text == "user: Hello<|end|>"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids[0].tolist() == opened.tokenizer.render_conversation(CHAT).ids
    assert torch.allclose(theirs(ids).logits, opened.model(ids), atol=1e-5)
    settings = theirs.generation_config
    assert (settings.eos_token_id, settings.temperature, settings.top_p) == ([0, 1], 0.6, 0.9)


def test_saving_in_another_type(directory: Path, tmp_path: Path) -> None:
    opened = llmkit.load(str(directory), device="cpu")
    opened.save(tmp_path / "half", dtype="bf16", generation={"temperature": 0.1})
    again = llmkit.load(str(tmp_path / "half"), device="cpu")
    assert {parameter.dtype for parameter in again.model.parameters()} == {torch.bfloat16}
    assert again.model.generation_settings == {"temperature": 0.1, "top_p": 0.9}
    with pytest.raises(ConfigError, match="`int3` is no dtype"):
        opened.save(tmp_path / "no", dtype="int3")
