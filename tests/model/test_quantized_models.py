"""Quantized models: loaded, run, trained under adapters, saved and measured like any other."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llmkit
from llmkit.errors import ConfigError, ModelError
from llmkit.model.adapters.attach import attach, linear_names, linear_of, merge
from llmkit.model.adapters.config import AdapterConfig
from llmkit.model.config import ModelConfig
from llmkit.model.generation import Generator
from llmkit.model.initialization import build
from llmkit.model.layers import Linear
from llmkit.model.load import load_model
from llmkit.model.quantization.config import BITS, Quantization
from llmkit.model.quantization.linear import QuantizedLinear
from llmkit.model.quantization.quantize import is_quantized, quantize
from llmkit.model.sampling import Sampling
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer

KINDS: list[Quantization] = list(BITS)
VOCABULARY = 96


def _config(family: str = "llama", **settings: Any) -> ModelConfig:
    spec = ModelSpec(family=family, layers=2, width=64, heads=4, context=64, init_std=0.1, **settings)
    return spec.resolve(VOCABULARY, pad_id=0)


def _model(family: str = "llama", dtype: torch.dtype = torch.float32, **settings: Any) -> Transformer:
    return build(_config(family, **settings), seed=1).to(dtype).eval()


def _dense(model: Transformer) -> Transformer:
    """The model with each quantized map made a plain one of its dense weight, in float32."""
    twin = copy.deepcopy(model).float()
    for name, module in list(twin.named_modules()):
        if isinstance(module, QuantizedLinear):
            plain = Linear(module.in_features, module.out_features, bias=False)
            plain.weight, plain.bias = nn.Parameter(module.dense_weight().float()), module.bias
            parent, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(parent), leaf, plain)
    return twin


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_quantized_model_computes_with_its_dense_weights(family: str, kind: Quantization) -> None:
    model = quantize(_model(family), kind)
    ids = torch.randint(1, VOCABULARY, (2, 20))
    expected = _dense(model)(ids)
    tolerance = 3e-2 if kind == "int4" else 1e-4  # int4 computes with activations in bfloat16.
    torch.testing.assert_close(model(ids), expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_only_maps_in_blocks_and_the_output_are_quantized(family: str) -> None:
    model = quantize(_model(family), "int8")
    kept = {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    inside = {name for name in linear_names(model) if name.startswith("blocks.")}
    assert kept == inside | {"head.projection"}
    assert all(parameter.dim() == 1 for name, parameter in model.blocks.named_parameters())
    without = quantize(_model(family), "int8", output=False)
    assert without.head.projection.weight is without.embeddings.token.weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_loading_quantizes_as_quantizing_what_was_loaded(family: str, kind: Quantization, tmp_path: Path) -> None:
    save_model(_model(family), tmp_path)
    opened = load_model(tmp_path, dtype=torch.bfloat16, quantize=kind)
    expected = quantize(load_model(tmp_path, dtype=torch.bfloat16), kind)
    assert {name: str(module) for name, module in opened.named_modules()} == {
        name: str(module) for name, module in expected.named_modules()
    }
    found = opened.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())


def test_an_output_map_of_its_own_is_quantized_apart_from_the_embedding(tmp_path: Path) -> None:
    model = _model(tie_embeddings=False)
    token = model.embeddings.token.weight.clone()
    quantize(model, "nf4")
    assert isinstance(model.head.projection, QuantizedLinear)
    assert torch.equal(model.embeddings.token.weight, token)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_the_codes(kind: Quantization) -> None:
    model = _model(dtype=torch.bfloat16)
    dense = sum(parameter.numel() for parameter in model.parameters())
    maps = sum(linear_of(model, name).weight.numel() for name in linear_names(model) if name.startswith("blocks."))
    rows = model.config.vocab_size * model.config.width
    outputs = sum(linear_of(model, name).out_features for name in linear_names(model))
    quantize(model, kind)
    bytes_kept = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    scales = 2 * (outputs if kind == "int8" else model.config.vocab_size)
    assert bytes_kept == maps * BITS[kind] / 8 + rows + scales + 2 * (dense - maps - rows)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_of_the_full_forward_pass(kind: Quantization) -> None:
    model = quantize(_model(), kind)
    prompts = [[5, 6, 7], [9], [11, 3, 80, 2, 1]]
    answers = Generator(model, max_batch=2).generate(prompts, Sampling(max_new_tokens=12, temperature=0, stop_ids=()))
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = model(torch.tensor([[*prompt, *answer.token_ids]]))[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        # The token chosen is the best one, or within rounding of it.
        assert (logits.amax(1) - chosen).max() <= 0.02 * logits.abs().max()


def test_saving_makes_the_weights_dense(tmp_path: Path) -> None:
    for kind in KINDS:
        for family in ("llama", "bert"):
            model = quantize(_model(family), kind)
            save_model(model, tmp_path / kind / family)
            opened = load_model(tmp_path / kind / family)
            assert not is_quantized(opened)
            ids = torch.randint(1, VOCABULARY, (2, 9))
            expected = _dense(model)(ids)
            # int4 keeps its scales, and so its dense weights, in bfloat16.
            torch.testing.assert_close(opened.float()(ids), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_adapters_train_on_frozen_codes_as_on_the_dense_weights(base: Quantization, kind: Any) -> None:
    model = quantize(_model(), base, output=False)
    twin = _dense(model)
    for each in (model, twin):
        attach(each, AdapterConfig(kind=kind, rank=4, alpha=8), seed=3)
    codes = {name: tensor.clone() for name, tensor in model.named_buffers() if name.endswith(("codes", "scale"))}
    ids = torch.randint(1, VOCABULARY, (2, 16))
    for _ in range(2):
        for each in (model, twin):
            _loss(each, ids).backward()
            for name, parameter in each.named_parameters():
                assert (parameter.grad is not None) == (".adapter." in name), name
                if parameter.grad is not None:
                    parameter.data -= 0.1 * parameter.grad
        gradients = dict(twin.named_parameters())
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                expected = gradients[name].grad
                assert expected is not None
                largest = expected.abs().max().item()
                torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-3 * largest + 1e-9)
    assert codes
    assert all(torch.equal(model.get_buffer(name), tensor) for name, tensor in codes.items())
    adapted = model(ids)
    merge(model)
    assert not is_quantized(model)
    torch.testing.assert_close(model(ids), adapted, rtol=0, atol=1e-4 * adapted.abs().max().item())


def _loss(model: Transformer, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())


def test_a_trained_model_is_little_worse_for_it() -> None:
    """Sequences that count up in steps of 1 to 3: after the first two tokens, everything is known."""
    model = _model(dtype=torch.float32).train()
    generator = torch.Generator().manual_seed(0)

    def batch(rows: int) -> Tensor:
        start, step = (torch.randint(1, high, (rows, 1), generator=generator) for high in (VOCABULARY, 4))
        return (start + step * torch.arange(12)) % VOCABULARY

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        _loss(model, batch(32)).backward()
        optimizer.step()
    model.eval()
    held_out = batch(256)
    with torch.no_grad():
        dense = _loss(model, held_out).item()
        assert dense < 0.4, "the model learned too little to tell"
        losses = {kind: _loss(quantize(copy.deepcopy(model), kind), held_out).item() for kind in KINDS}
    assert abs(losses["int8"] - dense) < 0.002
    assert max(losses["int4"], losses["nf4"]) - dense < 0.08


def test_llmkit_load_takes_a_word_for_it(quantizable_directory: Path) -> None:
    loaded = llmkit.load(str(quantizable_directory), quantize="nf4", device="cpu")
    assert is_quantized(loaded.model)
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.generate("a b", max_new_tokens=3, temperature=0)[0].token_ids
    with pytest.raises(ConfigError, match="int8, int4, nf4"):
        llmkit.load(str(quantizable_directory), quantize="q4_k_m")


def test_directories_that_others_have_quantized_are_refused(tmp_path: Path) -> None:
    save_model(_model(), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="quantization_config: bitsandbytes"):
        load_model(tmp_path)


@pytest.fixture
def quantizable_directory(tmp_path: Path) -> Path:
    """A model directory with a tokenizer of few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<|end|>": 0, **{chr(97 + i): i + 1 for i in range(26)}}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|end|>"])
    save_model(_model(), tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = '{"eos_token": "<|end|>", "tokenizer_class": "PreTrainedTokenizerFast"}'
    (tmp_path / "tokenizer_config.json").write_text(settings)
    return tmp_path
