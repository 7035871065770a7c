"""Opening directories: heads that are replaced, and everything that is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llmkit.errors import ModelError
from llmkit.model.facts import known_architecture, read_model_facts
from llmkit.model.initialization import build
from llmkit.model.load import load_model
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama's directory; tests that change it copy it first."""
    path = tmp_path_factory.mktemp("model")
    config = ModelSpec(family="llama", layers=2, width=16, heads=2, context=32).resolve(11, pad_id=0, eos_ids=(1,))
    save_model(build(config, seed=1), path)
    return path


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def _change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _change_weights(directory: Path, change: Any) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_facts(saved: Path) -> None:
    facts = read_model_facts(saved)
    config = known_architecture(facts, "causal-lm")
    assert config is not None
    assert config.model_copy(update={"pad_id": 0, "eos_ids": (1,)}) == load_model(saved).config
    assert {name: value for name, value in facts.items() if name != "architecture"} == {
        "family": "llama",
        "head": "causal-lm",
        "labels": [],
        "causal": True,
        "vocab_size": 11,
        "context": 32,
        "width": 16,
        "layers": 2,
        "linears": {
            **{f"attention.{name}": [16, 16] for name in ("query", "key", "value", "output")},
            "mlp.gate": [16, 64],
            "mlp.up": [16, 64],
            "mlp.down": [64, 16],
        },
        "pad_id": 0,
        "eos_ids": [1],
        "parameters": sum(parameter.numel() for parameter in load_model(saved).parameters()),
    }


def test_a_loaded_model_is_in_evaluation_mode_and_trainable(saved: Path) -> None:
    model = load_model(saved)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert load_model(saved, dtype=torch.bfloat16).blocks[0].mlp.up.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("head", ["reward", "classification"])
def test_another_head_is_new_seeded_and_named(head: Any, saved: Path) -> None:
    labels = ["x", "y", "z"] if head == "classification" else None
    body = load_model(saved)
    models = [load_model(saved, head=head, labels=labels, seed=seed) for seed in (1, 1, 2)]
    assert models[0].new_parameters == ("head.score.weight",)
    assert torch.equal(models[0].head.score.weight, models[1].head.score.weight)
    assert not torch.equal(models[0].head.score.weight, models[2].head.score.weight)
    assert torch.equal(models[0].blocks[1].mlp.down.weight, body.blocks[1].mlp.down.weight)
    assert models[0].config.labels == tuple(labels or ())


def test_a_reward_model_becomes_a_classifier_and_a_language_model_again(saved: Path, tmp_path: Path) -> None:
    save_model(load_model(saved, head="reward"), tmp_path)
    assert read_model_facts(tmp_path)["head"] == "reward"
    assert load_model(tmp_path).new_parameters == ()
    assert load_model(tmp_path, head="classification", labels=["a", "b"]).new_parameters == ("head.score.weight",)
    model = load_model(tmp_path, head="causal-lm")
    assert model.new_parameters == ()  # The projection is the embedding.
    input_ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(model(input_ids), load_model(saved)(input_ids))


def test_other_labels_make_a_new_final_map_and_keep_the_pooler(tmp_path: Path) -> None:
    config = ModelSpec(family="bert", layers=1, width=16, heads=2).resolve(11, pad_id=0)
    classifier = build(config.with_head("classification", ("a", "b")), seed=1)
    save_model(classifier, tmp_path)
    assert load_model(tmp_path, labels=["a", "b"]).new_parameters == ()
    model = load_model(tmp_path, labels=["a", "b", "c"])
    assert model.new_parameters == ("head.score.bias", "head.score.weight")
    assert torch.equal(model.head.pooler.weight, classifier.head.pooler.weight)
    language_model = load_model(tmp_path, head="masked-lm")
    assert "head.transform.weight" in language_model.new_parameters


def test_dropping_an_untied_language_model_head(tmp_path: Path) -> None:
    config = ModelSpec(family="gpt2", layers=1, width=16, heads=2, tie_embeddings=False).resolve(11, pad_id=0)
    save_model(build(config, seed=1), tmp_path)
    assert load_model(tmp_path, head="reward").new_parameters == ("head.score.weight",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llamma"}, "unknown model family 'llamma' .* the nearest is llama"),
        ({"model_type": None}, "unknown model family None"),
        ({"model_type": ["llama"]}, "unknown model family"),
        ({"architectures": ["LlamaForQuestions"]}, "unknown architecture 'LlamaForQuestions'.*LlamaForCausalLM"),
        ({"architectures": None}, "unknown architecture None"),
        ({"architectures": ["LlamaModel"]}, "LlamaModel has no head"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "wide"}, "hidden_size: 'wide' is no whole number"),
        ({"hidden_size": -4}, "hidden_size: .*greater"),
        ({"num_attention_heads": 0}, "num_attention_heads: .*greater"),
        ({"num_key_value_heads": 3}, r"kv_heads \(3\) must divide heads \(2\)"),
        ({"hidden_act": "swishy"}, "unknown activation 'swishy'"),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 2}}, "'spiral' is not supported"),
        ({"rope_scaling": "yes"}, "rope_scaling: 'yes' is no table"),
        ({"rope_theta": 0}, "rope_theta: .*greater"),
        ({"num_attention_heads": 3, "head_dim": None}, "heads .3. does not divide the width .16."),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: factor is missing"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers are announced"),
        ({"num_hidden_layers": 3}, "missing model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "unexpected model.layers.1.input_layernorm.weight"),
        ({"vocab_size": 12}, r"model.embed_tokens.weight has shape \[11, 16\], not \[12, 16\]"),
        ({"hidden_size": 10**12, "head_dim": 8}, r"not \[11, 1000000000000\]"),
        ({"mlp_bias": True}, "missing model.layers.0.mlp.down_proj.bias"),
        ({"tie_word_embeddings": False}, "missing lm_head.weight"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_configs_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, directory: Path) -> None:
    _change_config(directory, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(directory)


def test_settings_that_would_change_the_result_are_refused(tmp_path: Path) -> None:
    config = ModelSpec(family="gpt2", layers=1, width=16, heads=2).resolve(11, pad_id=0)
    save_model(build(config, seed=1), tmp_path)
    _change_config(tmp_path, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ModelError, match="scale_attn_by_inverse_layer_idx: True is not supported"):
        load_model(tmp_path)


def test_missing_extra_and_misshapen_weights_are_named_together(directory: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.7.extra"] = tensors.pop("model.norm.weight")
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].T.contiguous()

    _change_weights(directory, change)
    with pytest.raises(ModelError) as caught:
        load_model(directory)
    text = str(caught.value)
    assert "missing model.norm.weight" in text
    assert "unexpected model.layers.7.extra" in text
    assert "model.layers.0.mlp.up_proj.weight has shape [16, 64], not [64, 16]" in text


def test_a_tied_copy_of_the_embedding_is_accepted(directory: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    _change_weights(directory, change)
    assert load_model(directory).new_parameters == ()


def test_weights_of_no_plain_number_type_are_refused(directory: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)

    _change_weights(directory, change)
    with pytest.raises(ModelError, match="weights of type I8 are not supported"):
        load_model(directory)


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_truncated_weights_are_refused(keep: int, directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="damaged weights"):
        load_model(directory)


def test_a_header_of_absurd_size_is_refused(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ModelError, match="damaged weights"):
        load_model(directory)


def test_a_directory_without_weights_is_refused(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "weights.safetensors")
    with pytest.raises(ModelError, match=r"there is no model.safetensors.*pytorch_model.bin"):
        load_model(directory)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("../model.safetensors", "not the name of a .safetensors file here"),
        ("/etc/model.safetensors", "not the name of a .safetensors file here"),
        ("weights.bin", "not the name of a .safetensors file here"),
        ("model-2.safetensors", "shard model-2.safetensors is missing"),
        (3, "weight_map must map"),
    ],
)
def test_shard_names_cannot_lead_elsewhere(shard: Any, message: str, directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model-1.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-1.safetensors", "lm_head.weight": shard}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=message):
        load_model(directory)


def test_a_tensor_that_no_shard_holds_is_named(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model-1.safetensors")
    index = {"weight_map": {"model.absent.weight": "model-1.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"no shard holds model.absent.weight"):
        load_model(directory)


@pytest.mark.parametrize("content", ["", "{", "[]", "nul", "\xff", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(content: str, directory: Path) -> None:
    (directory / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match=r"config.json"):
        load_model(directory)
    (directory / "config.json").unlink()
    with pytest.raises(ModelError, match=r"there is no config.json"):
        read_model_facts(directory)
    with pytest.raises(ModelError, match=r"there is no config.json"):
        read_model_facts(directory / "absent")


def test_the_body_cannot_carry_a_foreign_head(directory: Path) -> None:
    with pytest.raises(ModelError, match="a llama model cannot carry a masked-lm head"):
        load_model(directory, head="masked-lm")
    with pytest.raises(ModelError, match="at least two labels"):
        load_model(directory, head="classification")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_config_is_opened_or_refused_in_words(data: st.DataObject, saved: Path, tmp_path: Path) -> None:
    """Settings deleted, retyped or out of range: a ModelError or a model, never another exception."""
    config = json.loads((saved / "config.json").read_text())
    keys = data.draw(st.lists(st.sampled_from([*config, "rope_parameters", "id2label"]), min_size=1, max_size=3))
    for key in keys:
        if data.draw(st.booleans()):
            config.pop(key, None)
        else:
            config[key] = data.draw(JSON)
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(saved / "model.safetensors", tmp_path / "model.safetensors")
    try:
        model = load_model(tmp_path)
    except ModelError as error:
        assert str(tmp_path) in str(error)
    else:
        assert model(torch.tensor([[1, 2]])).shape[0] == 1
