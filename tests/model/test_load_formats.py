"""Directories in every form: shards, older pickles, bodies alone, other data types; held against transformers."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from llmkit.errors import ModelError
from llmkit.model.checkpoint import list_tensors
from llmkit.model.facts import read_model_facts
from llmkit.model.initialization import build
from llmkit.model.load import load_model
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])


def _reference(**changes: Any) -> transformers.LlamaForCausalLM:
    shape = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    config = transformers.LlamaConfig(**shape, num_attention_heads=2, max_position_embeddings=32, **changes)
    return transformers.LlamaForCausalLM(config).eval()


def _ours(**changes: Any) -> Transformer:
    spec = ModelSpec(family="llama", layers=3, width=16, heads=2, context=32, **changes)
    return build(spec.resolve(11, pad_id=0, eos_ids=(1,)), seed=1).eval()


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    answer = model(input_ids=IDS)
    logits: torch.Tensor = getattr(answer, "logits", answer)
    return logits.float()


def _as_pickle(directory: Path, **how: Any) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin", **how)
    (directory / "model.safetensors").unlink()


def test_shards_that_transformers_wrote(tmp_path: Path) -> None:
    reference = _reference()
    reference.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 3
    assert torch.allclose(_logits(load_model(tmp_path)), _logits(reference), atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_shards_that_transformers_opens(tied: bool, tmp_path: Path) -> None:
    model = _ours(tie_embeddings=tied)
    save_model(model, tmp_path, max_shard_size=4000)
    assert not (tmp_path / "model.safetensors").exists()
    reference, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.allclose(_logits(reference), _logits(model), atol=1e-5)
    assert torch.equal(_logits(load_model(tmp_path)), _logits(model))


def test_shards_keep_to_their_size_and_to_their_index(tmp_path: Path) -> None:
    model = _ours(tie_embeddings=False)
    save_model(model, tmp_path, max_shard_size=5000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = {file.name: load_file(file) for file in tmp_path.glob("*.safetensors")}
    assert {tensor: file for file, tensors in shards.items() for tensor in tensors} == index["weight_map"]
    count = len(shards)
    assert sorted(shards) == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in shards.values()]
    assert max(sizes) <= 5000
    assert sum(sizes) == index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
    assert index["metadata"]["total_parameters"] == sum(p.numel() for p in model.parameters())


def test_a_tensor_larger_than_a_shard_has_a_file_of_its_own(tmp_path: Path) -> None:
    save_model(_ours(), tmp_path, max_shard_size=1)
    assert all(len(load_file(file)) == 1 for file in tmp_path.glob("*.safetensors"))
    assert torch.equal(_logits(load_model(tmp_path)), _logits(_ours()))


def test_equal_models_give_equal_bytes_in_any_number_of_shards(tmp_path: Path) -> None:
    for size in (10**9, 4000):
        save_model(_ours(), tmp_path / "one", max_shard_size=size)
        save_model(load_model(tmp_path / "one"), tmp_path / "two", max_shard_size=size)
        files = sorted(file.name for file in (tmp_path / "one").iterdir())
        assert files == sorted(file.name for file in (tmp_path / "two").iterdir())
        assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_saving_replaces_the_weights_that_were_there(tmp_path: Path) -> None:
    other = _ours(mlp_width=24)
    (tmp_path / "pytorch_model.txt").write_text("kept")
    for size in (4000, 10**9, 6000, 4000):
        save_model(other, tmp_path, max_shard_size=10**9 if size == 4000 else 4000)
        save_model(_ours(), tmp_path, max_shard_size=size)
        assert torch.equal(_logits(load_model(tmp_path)), _logits(_ours()))
        index = tmp_path / "model.safetensors.index.json"
        expected = (
            set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
        )
        assert {file.name for file in tmp_path.glob("*.safetensors")} == expected
    assert (tmp_path / "pytorch_model.txt").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_pickled_weights(zipped: bool, tmp_path: Path) -> None:
    model = _ours()
    save_model(model, tmp_path)
    _as_pickle(tmp_path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(_logits(load_model(tmp_path)), _logits(model))
    assert load_model(tmp_path, dtype=torch.bfloat16).blocks[0].mlp.up.weight.dtype == torch.bfloat16


def test_pickled_shards(tmp_path: Path) -> None:
    model = _ours()
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[:4], names[4:]), start=1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, tmp_path / file)
        index |= dict.fromkeys(part, file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert torch.equal(_logits(load_model(tmp_path)), _logits(model))
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ModelError, match=r"shard pytorch_model-00002-of-00002.bin is missing"):
        load_model(tmp_path)


def test_a_state_dict_as_transformers_pickled_it(tmp_path: Path) -> None:
    """Old names of norms, tied copies that share memory, parameters, buffers that are no weights."""
    shape = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = transformers.BertConfig(**shape, num_attention_heads=2, max_position_embeddings=32, pad_token_id=0)
    reference = transformers.BertForMaskedLM(config).eval()
    config.architectures = ["BertForMaskedLM"]
    config.save_pretrained(tmp_path)
    state = OrderedDict()
    for name, tensor in reference.state_dict(keep_vars=True).items():
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        state[old] = tensor
    state["bert.embeddings.position_ids"] = torch.arange(32)[None]
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert torch.allclose(_logits(load_model(tmp_path)), _logits(reference), atol=1e-5)


def test_strided_tensors_are_read_as_they_are(tmp_path: Path) -> None:
    model = _ours()
    save_model(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    tensors = {name: tensor.t().contiguous().t() for name, tensor in stored.items()}
    assert not all(tensor.is_contiguous() for tensor in tensors.values())
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert torch.equal(_logits(load_model(tmp_path)), _logits(model))


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    save_model(_ours(), tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"no weights")
    assert torch.equal(_logits(load_model(tmp_path)), _logits(_ours()))
    save_model(_ours(), tmp_path, max_shard_size=4000)
    assert torch.equal(_logits(load_model(tmp_path)), _logits(_ours()))


class _Runs:
    """Unpickled, this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("way", ["zip", "before 1.6", "plain pickle", "shard"])
def test_nothing_in_a_pickle_is_run(way: str, tmp_path: Path) -> None:
    save_model(_ours(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    hostile = {**tensors, "model.norm.weight": _Runs(tmp_path / "ran")}
    if way == "plain pickle":
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(hostile, protocol=2))
    else:
        file = "pytorch_model-00001-of-00001.bin" if way == "shard" else "pytorch_model.bin"
        torch.save(hostile, tmp_path / file, _use_new_zipfile_serialization=way != "before 1.6")
        if way == "shard":
            index = {"weight_map": dict.fromkeys(tensors, file)}
            (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"damaged weights .* nothing in it was run"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "a list is stored in place of named tensors"),
        ({"state_dict": {"x": torch.zeros(2)}}, "'state_dict' is no named tensor"),
        ({3: torch.zeros(2)}, "'3' is no named tensor"),
        ({"x": torch.zeros(2, 2).to_sparse()}, "x is no plain tensor"),
        ({"x": torch.zeros(1).expand(10**9)}, "x is larger than what is stored of it"),
        (dict.fromkeys(map(str, range(1000)), torch.zeros(500)), "the tensors are larger than the file"),
    ],
    ids=str,
)
def test_pickles_of_other_things(content: Any, message: str, tmp_path: Path) -> None:
    save_model(_ours(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)


def test_a_tensor_that_is_stored_twice(tmp_path: Path) -> None:
    save_model(_ours(), tmp_path, max_shard_size=4000)
    first, second = sorted(tmp_path.glob("model-*.safetensors"))[:2]
    save_file({**load_file(second), **load_file(first)}, second)
    with pytest.raises(ModelError, match=r"is stored twice"):
        load_model(tmp_path)


@pytest.mark.parametrize("model_class", ["LlamaModel", "LlamaForCausalLM"])
def test_a_body_saved_alone_opens_under_a_new_head(model_class: str, tmp_path: Path) -> None:
    reference = _reference()
    (reference.model if model_class == "LlamaModel" else reference).save_pretrained(tmp_path, max_shard_size="4KB")
    model = load_model(tmp_path, head="reward")
    assert model.new_parameters == ("head.score.weight",)
    with torch.no_grad():
        assert torch.allclose(model.hidden(IDS), reference.model(IDS).last_hidden_state, atol=1e-5)


def test_pieces_are_put_together_whatever_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows read one by one, three by three, and mapped anew each time: the same bits."""
    for family in ("llama", "gpt2"):
        spec = ModelSpec(family=family, layers=2, width=16, heads=2, context=32)  # type: ignore[arg-type]
        model = build(spec.resolve(11, pad_id=0), seed=1)
        directory = tmp_path / family
        save_model(model, directory)
        pickled = shutil.copytree(directory, tmp_path / f"{family}-pickled")
        _as_pickle(Path(pickled))
        monkeypatch.setattr("llmkit.model.mapped._LEAST", 100)
        for piece in (1, 200):
            monkeypatch.setattr("llmkit.model.load._PIECE", piece)
            for place in (directory, tmp_path / f"{family}-pickled"):
                found = dict(load_model(place).named_parameters())
                assert all(torch.equal(found[name], value) for name, value in model.named_parameters())


def test_rows_of_a_stored_tensor(tmp_path: Path) -> None:
    wanted = torch.arange(12.0).view(4, 3)
    content = {"model.x": wanted, "model.scalar": torch.tensor(3.0), "model.none": torch.zeros(0, 3)}
    save_file(content, tmp_path / "model.safetensors")
    torch.save(content, tmp_path / "pytorch_model.bin")
    for _ in range(2):
        tensors = list_tensors(tmp_path)
        assert torch.equal(tensors["model.x"].read(1, 3), wanted[1:3])
        assert torch.equal(tensors["model.x"].read(2), wanted[2:])
        assert torch.equal(tensors["model.x"].read(), wanted)
        assert tensors["model.scalar"].read().item() == 3.0
        assert tensors["model.none"].read().shape == (0, 3)
        assert tensors["model.x"].kind == "F32"
        (tmp_path / "model.safetensors").unlink(missing_ok=True)


def test_generation_settings_are_kept(tmp_path: Path) -> None:
    reference = _reference(eos_token_id=1)
    kept = {"temperature": 0.6, "top_p": 0.9, "do_sample": True}
    reference.generation_config = transformers.GenerationConfig(**kept, eos_token_id=[1, 9], bos_token_id=2)
    reference.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    assert model.config.eos_ids == (1, 9)
    assert read_model_facts(tmp_path / "theirs")["eos_ids"] == [1, 9]
    save_model(model, tmp_path / "ours", generation={"top_p": 0.8})
    again = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    assert (again.temperature, again.top_p, again.do_sample) == (0.6, 0.8, True)
    assert again.eos_token_id == [1, 9]
    assert load_model(tmp_path / "ours").generation_settings == {**kept, "top_p": 0.8}
    assert load_model(tmp_path / "ours", head="reward").generation_settings == {}


@pytest.mark.parametrize("ends", ["1", [1, "2"], {"a": 1}, True, 1.5, [[1]]])
def test_generation_settings_that_make_no_sense(ends: Any, tmp_path: Path) -> None:
    save_model(_ours(), tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(ModelError, match=r"generation_config.json: eos_token_id must be a token's number"):
        load_model(tmp_path)


def test_a_directory_with_code_of_its_own(tmp_path: Path) -> None:
    save_model(_ours(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    code = {"auto_map": {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}}
    (tmp_path / "config.json").write_text(json.dumps({**config, **code, "model_type": "own"}))
    (tmp_path / "modeling_own.py").write_text("raise SystemExit('ran')")
    (tmp_path / "configuration_own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match=r"unknown model family 'own' .*Python code for it, which is never run"):
        load_model(tmp_path)


def test_unknown_settings_without_effect_are_ignored(tmp_path: Path) -> None:
    save_model(_ours(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    more = {
        "transformers_version": "4.1",
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "_name_or_path": "/x",
        "x": [1],
    }
    (tmp_path / "config.json").write_text(json.dumps({**config, **more}))
    assert torch.equal(_logits(load_model(tmp_path)), _logits(_ours()))
