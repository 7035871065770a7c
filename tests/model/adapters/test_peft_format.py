"""Adapters of PEFT's opened here, and ours opened by PEFT: the same logits, the same gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from adapter_samples import VARIANTS, adapted, assert_close, batch, loss_of, low_rank_gradients, move, reference
from safetensors.torch import load_file, save_file

from llmkit.errors import ModelError
from llmkit.model.adapters.attach import adapter_of, attach, find_attached, linear_names, merge, without_adapter
from llmkit.model.adapters.config import AdapterConfig
from llmkit.model.adapters.open import open_adapted
from llmkit.model.adapters.peft import load_adapter, save_adapter
from llmkit.model.load import load_model
from llmkit.model.transformer import Transformer

HEADS = {"Llama": "LlamaForCausalLM", "GPT2": "GPT2LMHeadModel", "Bert": "BertForMaskedLM"}

# For each of our linear maps that these adapters are on: PEFT's module and its part of B's rows.
PLACES = {
    "Llama": {
        "attention.query": ("self_attn.q_proj", slice(None)),
        "attention.output": ("self_attn.o_proj", slice(None)),
        "mlp.gate": ("mlp.gate_proj", slice(None)),
        "mlp.down": ("mlp.down_proj", slice(None)),
    },
    "GPT2": {
        "attention.query": ("attn.c_attn", slice(0, 32)),
        "attention.key": ("attn.c_attn", slice(32, 64)),
        "attention.value": ("attn.c_attn", slice(64, 96)),
        "mlp.up": ("mlp.c_fc", slice(None)),
        "mlp.down": ("mlp.c_proj", slice(None)),
    },
    "Bert": {
        "attention.query": ("attention.self.query", slice(None)),
        "attention.output": ("attention.output.dense", slice(None)),
        "mlp.up": ("intermediate.dense", slice(None)),
    },
}
LAYERS = {"Llama": "model.layers", "GPT2": "transformer.h", "Bert": "bert.encoder.layer"}


def logits_of(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=batch()).logits
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", HEADS)
def test_theirs_opened_here_has_equal_logits_and_gradients(family: str, variant: str, tmp_path: Path) -> None:
    base = reference(HEADS[family], tmp_path / "base")
    plain = logits_of(base).detach()
    theirs = adapted(base, family, **VARIANTS[variant])
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_model(tmp_path / "base")
    load_adapter(ours, tmp_path / "adapter")
    expected, found = logits_of(theirs), ours(batch())
    assert float((expected - plain).abs().max()) > 0.1
    assert_close(found, expected)
    loss_of(expected).backward()
    loss_of(found).backward()
    for layer in (0, 1):
        for name, (module, rows) in PLACES[family].items():
            there = theirs.get_submodule(f"base_model.model.{LAYERS[family]}.{layer}.{module}")
            gradients = low_rank_gradients(ours, f"blocks.{layer}.{name}")
            assert_close(gradients["a"], there.lora_A["default"].weight.grad)
            assert_close(gradients["b"], there.lora_B["default"].weight.grad[rows])
            if "dora" in variant:
                magnitude = there.lora_magnitude_vector["default"].weight.grad
                assert_close(gradients["magnitude"], magnitude[rows])
    assert all(p.grad is None for name, p in ours.named_parameters() if ".adapter." not in name)
    with torch.no_grad():
        with without_adapter(ours):
            assert_close(ours(batch()), plain)
        assert_close(ours(batch()), expected)
        merge(ours)
        assert_close(ours(batch()), expected)
    assert find_attached(ours) is None


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", HEADS)
def test_ours_opened_by_peft_has_equal_logits(family: str, variant: str, tmp_path: Path) -> None:
    base = reference(HEADS[family], tmp_path / "base")
    ours = load_model(tmp_path / "base")
    config = AdapterConfig(kind=variant, rank=4, alpha=6.0, ranks={"blocks.0.mlp.*": 2}, alphas={"attention.*": 5.5})
    attach(ours, config, seed=3)
    move(ours)
    expected = ours(batch()).detach()
    save_adapter(ours, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert_close(logits_of(theirs).detach(), expected)
    again = load_model(tmp_path / "base")
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(again(batch()), expected)
    save_adapter(again, tmp_path / "again")
    for file in ("adapter_config.json", "adapter_model.safetensors", "llmkit.json"):
        assert (tmp_path / "adapter" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_a_part_of_a_stacked_projection(variant: str, tmp_path: Path) -> None:
    """GPT-2's query and value alone: PEFT has an adapter on all of c_attn, whose rows for the key are zero."""
    base = reference("GPT2LMHeadModel", tmp_path / "base")
    ours = load_model(tmp_path / "base")
    attach(
        ours, AdapterConfig(kind=variant, rank=4, targets=["attention.query", "attention.value"], layers="1-"), seed=3
    )
    move(ours)
    assert adapter_of(ours, "blocks.1.attention.query").a is adapter_of(ours, "blocks.1.attention.value").a
    expected = ours(batch()).detach()
    save_adapter(ours, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["transformer.h.1.attn.c_attn"]
    assert settings["fan_in_fan_out"] is True
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    prefix = "base_model.model.transformer.h.1.attn.c_attn."
    assert not tensors[prefix + "lora_B.weight"][32:64].any()
    assert_close(logits_of(peft.PeftModel.from_pretrained(base, tmp_path / "adapter")).detach(), expected)


def test_names_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    reference("BertForMaskedLM", tmp_path / "base")
    ours = load_model(tmp_path / "base")
    attach(ours, AdapterConfig(targets=["attention.query", "mlp.up", "attention.output"]), seed=3)
    save_adapter(ours, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    # "dense" would mean the output of the MLP and the head's transform too.
    assert settings["target_modules"] == ["attention.output.dense", "intermediate.dense", "query"]


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": r".*\.layers\.1\.self_attn\.(q|v)_proj"},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["layers.0.self_attn.k_proj"]},
        {
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 3},
            "alpha_pattern": {"^model.layers.0.self_attn.v_proj": 31},
        },
        {"init_lora_weights": "gaussian", "lora_dropout": 0.3},
    ],
)
def test_every_way_to_name_targets(settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = adapted(reference("LlamaForCausalLM", tmp_path / "base"), "Llama", **settings)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_model(tmp_path / "base")
    load_adapter(ours, tmp_path / "adapter")
    assert_close(ours(batch()), logits_of(theirs))


def test_a_classifier_is_saved_whole(tmp_path: Path) -> None:
    base = reference("BertForSequenceClassification", tmp_path / "base", num_labels=3)
    theirs = adapted(base, "Bert", task_type="SEQ_CLS")
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_model(tmp_path / "base")
    plain = ours(batch()).detach()
    load_adapter(ours, tmp_path / "adapter")
    assert_close(ours(batch()), logits_of(theirs))
    trainable = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert {name for name in trainable if ".adapter." not in name} == {"head.score.weight", "head.score.bias"}
    with without_adapter(ours):
        assert_close(ours(batch()), plain)
    save_adapter(ours, tmp_path / "ours")
    fresh = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base")
    opened = peft.PeftModel.from_pretrained(fresh, tmp_path / "ours").eval()
    assert_close(logits_of(opened), ours(batch()))


def test_a_body_without_a_head(tmp_path: Path) -> None:
    """As sentence models are adapted: PEFT's names lack the body's prefix."""
    reference("BertForMaskedLM", tmp_path / "base")
    body = transformers.BertModel.from_pretrained(tmp_path / "base", add_pooling_layer=False)
    theirs = adapted(body, "Bert")
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_model(tmp_path / "base")
    load_adapter(ours, tmp_path / "adapter")
    assert_close(ours.hidden(batch()), theirs(input_ids=batch()).last_hidden_state)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_head_saved_whole(tied: bool, tmp_path: Path) -> None:
    base = reference("LlamaForCausalLM", tmp_path / "base", tie_word_embeddings=tied)
    ours = load_model(tmp_path / "base")
    attach(ours, AdapterConfig(targets=["attention.*"], trainable=["embeddings.token", "head.projection"]), seed=3)
    move(ours)
    expected = ours(batch()).detach()
    save_adapter(ours, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert_close(logits_of(theirs).detach(), expected)
    again = load_model(tmp_path / "base")
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(again(batch()), expected)
    assert again.config.tie_embeddings is tied


def test_their_embedding_trained_apart_from_a_tied_head_unties_ours(tmp_path: Path) -> None:
    base = reference("LlamaForCausalLM", tmp_path / "base", tie_word_embeddings=True)
    theirs = adapted(base, "Llama", modules_to_save=["embed_tokens"])
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_model(tmp_path / "base")
    load_adapter(ours, tmp_path / "adapter")
    assert_close(ours(batch()), logits_of(theirs))
    assert ours.config.tie_embeddings is False


@pytest.mark.parametrize("labels", [1, 3])
def test_an_adapter_opens_with_the_base_that_it_names(labels: int, tmp_path: Path) -> None:
    """PEFT's classifier on a language model: the head comes from the adapter alone."""
    reference("LlamaForCausalLM", tmp_path / "base")
    base = transformers.LlamaForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=labels)
    theirs = adapted(base, "Llama", task_type="SEQ_CLS")
    theirs.save_pretrained(tmp_path / "adapter")
    expected = logits_of(theirs)
    ours = open_adapted(tmp_path / "adapter")
    assert ours.config.head == ("reward" if labels == 1 else "classification")
    assert_close(ours(batch()), expected[:, 0] if labels == 1 else expected)
    with pytest.raises(ModelError, match="does not name its base model"):
        edit(tmp_path / "adapter", base_model_name_or_path=None)
        open_adapted(tmp_path / "adapter")
    with pytest.raises(ModelError, match="base model `/nowhere/at/all` is not there"):
        edit(tmp_path / "adapter", base_model_name_or_path="/nowhere/at/all")
        open_adapted(tmp_path / "adapter")


def test_a_part_that_neither_holds_is_refused(tmp_path: Path) -> None:
    """BERT's pooler, which PEFT does not save with a classifier on a masked language model."""
    reference("BertForMaskedLM", tmp_path / "base")
    base = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    adapted(base, "Bert", task_type="SEQ_CLS").save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"holds head\.pooler\.bias, head\.pooler\.weight"):
        open_adapted(tmp_path / "adapter")


def edit(directory: Path, **settings: Any) -> None:
    file = directory / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Transformer, Path]:
    adapted(reference("LlamaForCausalLM", tmp_path / "base"), "Llama").save_pretrained(tmp_path / "adapter")
    return load_model(tmp_path / "base"), tmp_path / "adapter"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "ADALORA"}, "type 'ADALORA' is not supported"),
        ({"peft_type": "IA3"}, "type 'IA3'"),
        ({"bias": "lora_only"}, "biases of the base"),
        ({"lora_bias": True}, "lora_bias: not supported"),
        ({"use_qalora": True, "velora_config": {"scale": 2}}, "use_qalora, velora_config: not supported"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "changes the base model's weights"),
        ({"r": 5}, "has 4 rows, and the config says rank 5"),
        ({"r": 0}, "r: 0 is not possible"),
        ({"lora_alpha": "8"}, "lora_alpha: '8' is not possible"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern.q_proj"),
        ({"target_modules": ["q_proj"]}, "unexpected model.layers.0.mlp.down_proj.lora_A.weight"),
        ({"target_modules": "(q_proj"}, "is no regular expression"),
        ({"target_modules": None}, "names no modules"),
        ({"use_dora": True}, "missing model.layers.0.mlp.down_proj.lora_magnitude_vector"),
        ({"modules_to_save": 3}, "no list of names"),
    ],
)
def test_what_is_not_offered_is_refused(saved: tuple[Transformer, Path], settings: dict[str, Any], words: str) -> None:
    model, directory = saved
    edit(directory, **settings)
    with pytest.raises(ModelError) as refused:
        load_adapter(model, directory)
    assert words in str(refused.value)
    assert find_attached(model) is None


def test_other_tensors_are_refused(saved: tuple[Transformer, Path]) -> None:
    model, directory = saved
    file = directory / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    save_file({**tensors, name: torch.zeros(31, 4)}, file)
    with pytest.raises(ModelError, match=r"q_proj.lora_B.weight has shape \[31, 4\], not \[32, 4\]"):
        load_adapter(model, directory)
    save_file({**tensors, "base_model.model.model.norm.weight": torch.zeros(32)}, file)
    with pytest.raises(ModelError, match=r"unexpected model\.norm\.weight"):
        load_adapter(model, directory)
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    with pytest.raises(ModelError, match=r"missing model\.layers\.0\.self_attn\.q_proj\.lora_B\.weight"):
        load_adapter(model, directory)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match="damaged adapter"):
        load_adapter(model, directory)
    file.unlink()
    with pytest.raises(ModelError, match="there is no adapter_model"):
        load_adapter(model, directory)


def test_a_wrong_base_is_noticed(tmp_path: Path) -> None:
    reference("LlamaForCausalLM", tmp_path / "base")
    ours = load_model(tmp_path / "base")
    attach(ours, AdapterConfig(), seed=1)
    save_adapter(ours, tmp_path / "adapter", base="some/model")
    load_adapter(load_model(tmp_path / "base", dtype=torch.bfloat16), tmp_path / "adapter")
    load_adapter(load_model(tmp_path / "base", dtype=torch.float16), tmp_path / "adapter")
    other = load_model(tmp_path / "base")
    with torch.no_grad():
        for name in linear_names(other):
            other.get_submodule(name).weight.mul_(1.01)
    with pytest.raises(ModelError, match=r"another base model.*'some/model'"):
        load_adapter(other, tmp_path / "adapter")
    narrow = reference("LlamaForCausalLM", tmp_path / "narrow", intermediate_size=36)
    assert narrow is not None
    with pytest.raises(ModelError):
        load_adapter(load_model(tmp_path / "narrow"), tmp_path / "adapter")
