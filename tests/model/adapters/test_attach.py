"""Which maps an adapter stands on, what it begins as, what it computes on any base, and that it can be taken off."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from adapter_samples import assert_close, batch, move, reference
from pydantic import ValidationError

from llmkit.errors import ConfigError, ModelError
from llmkit.model.adapters.attach import (
    adapter_of,
    attach,
    attached,
    find_attached,
    fingerprint,
    linear_of,
    merge,
    without_adapter,
)
from llmkit.model.adapters.config import AdapterConfig, AdapterTraining
from llmkit.model.initialization import build
from llmkit.model.load import load_model
from llmkit.model.quantization.quantize import quantize
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer

KINDS = ["lora", "rslora", "dora", "rsdora"]


def tiny(family: str = "llama", **shape) -> Transformer:
    spec = ModelSpec(family=family, **{"layers": 2, "width": 64, "heads": 4, "context": 64, **shape})
    return build(spec.resolve(61, pad_id=None), seed=1).eval()


def adapted_names(config: AdapterConfig, family: str = "llama", **shape) -> list[str]:
    model = tiny(family, **shape)
    attach(model, config, seed=0)
    return list(attached(model).adapted)


def test_patterns_choose_maps() -> None:
    inside = [
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.output",
        "mlp.gate",
        "mlp.up",
        "mlp.down",
    ]
    assert adapted_names(AdapterConfig()) == [f"blocks.{i}.{name}" for i in (0, 1) for name in inside]
    assert adapted_names(AdapterConfig(targets=["blocks.1.mlp.*", "attention.que*"])) == [
        "blocks.0.attention.query",
        "blocks.1.attention.query",
        "blocks.1.mlp.gate",
        "blocks.1.mlp.up",
        "blocks.1.mlp.down",
    ]
    chosen = adapted_names(AdapterConfig(targets=["mlp.up"], layers="0,2-3, 5-"), layers=7)
    assert chosen == [f"blocks.{i}.mlp.up" for i in (0, 2, 3, 5, 6)]
    with_head = adapted_names(AdapterConfig(targets=["mlp.up", "head.transform"]), "bert")
    assert with_head == ["blocks.0.mlp.up", "blocks.1.mlp.up", "head.transform"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"targets": ["attention.qeury"]}, "`attention.qeury` matches no linear map of the model. Did you mean"),
        ({"layers": "0-2"}, "there is no block 2; the model's 2 blocks count from 0 to 1"),
        ({"ranks": {"mpl.*": 3}}, "`mpl.*` matches no linear map"),
        ({"trainable": ["embedding"]}, "`embedding` matches no module with parameters of the model. Did you mean"),
        ({"targets": ["head.projection"]}, "shares its weight with the token embedding"),
    ],
)
def test_patterns_without_meaning_are_refused(settings: dict, words: str) -> None:
    model = tiny()
    with pytest.raises(ConfigError) as refused:
        attach(model, AdapterConfig(**settings), seed=0)
    assert words in str(refused.value)
    assert find_attached(model) is None


@pytest.mark.parametrize("layers", ["a", "3-1", "", "1--2", "-3"])
def test_impossible_ranges_are_refused(layers: str) -> None:
    with pytest.raises(ValidationError):
        AdapterConfig(layers=layers)


def test_parts_of_one_matrix_need_one_rank() -> None:
    with pytest.raises(ConfigError, match="are one matrix in this family"):
        attach(tiny("gpt2"), AdapterConfig(ranks={"attention.query": 2}), seed=0)


def test_what_is_trained_and_what_it_begins_as() -> None:
    model = tiny()
    before = model(batch()).detach()
    attach(model, AdapterConfig(rank=4, ranks={"mlp.*": 2}, trainable=["*norm"]), seed=5)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    norms = {f"blocks.{i}.{part}_norm.weight" for i in (0, 1) for part in ("attention", "mlp")} | {"norm.weight"}
    assert {name for name in trained if ".adapter." not in name} == norms
    assert torch.equal(model(batch()), before)  # B is zero
    adapter = adapter_of(model, "blocks.1.mlp.down")
    assert adapter.rank == 2 and adapter.a.shape == (2, model.config.mlp_width)
    largest = float(adapter.a.abs().max())
    assert 0.9 * model.config.mlp_width**-0.5 < largest <= model.config.mlp_width**-0.5
    # As a function of seed and name alone: other maps, and the order they come in, have no influence.
    other = tiny()
    attach(other, AdapterConfig(rank=2, targets=["mlp.down"]), seed=5)
    assert torch.equal(adapter_of(other, "blocks.1.mlp.down").a, adapter.a)
    third = tiny()
    attach(third, AdapterConfig(rank=2, targets=["mlp.down"], initialization="gaussian"), seed=6)
    spread = float(adapter_of(third, "blocks.1.mlp.down").a.std())
    assert 0.4 < spread < 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_the_change_by_its_formula(kind: str) -> None:
    """Against W + s B A, and DoRA's rows of it, in float64."""
    model = tiny()
    attach(model, AdapterConfig(kind=kind, rank=4, alpha=6.0, targets=["mlp.up"], layers="0"), seed=2)
    move(model)
    linear, adapter = linear_of(model, "blocks.0.mlp.up"), adapter_of(model, "blocks.0.mlp.up")
    scale = 6.0 / (2.0 if kind.startswith("rs") else 4.0)
    weight = linear.weight.double() + scale * adapter.b.double() @ adapter.a.double()
    if kind.endswith("dora"):
        weight = weight * (adapter.magnitude.double() / weight.norm(dim=1))[:, None]
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    assert_close(linear(x).double(), x.double() @ weight.t())
    assert_close(adapter.merged_weight(linear).double(), weight)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_on_the_adapters_inputs_alone(kind: str) -> None:
    model = tiny()
    attach(model, AdapterConfig(kind=kind, rank=4, dropout=0.5, targets=["mlp.up"], layers="0"), seed=2)
    move(model)
    linear, adapter = linear_of(model, "blocks.0.mlp.up"), adapter_of(model, "blocks.0.mlp.up")
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    seen = F.dropout(x, 0.5)
    change = adapter.scale * (seen @ adapter.a.t() @ adapter.b.t())
    expected = x @ linear.weight.t() + change
    if kind.endswith("dora"):
        # As in PEFT: the ratio of lengths counts on what the adapter sees.
        ratio = adapter.magnitude / (linear.weight + adapter.scale * adapter.b @ adapter.a).norm(dim=1)
        expected = x @ linear.weight.t() + (ratio - 1) * (seen @ linear.weight.t()) + ratio * change
    model.train()
    torch.manual_seed(3)
    assert_close(linear(x), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", ["bf16", "int8", "nf4"])
def test_on_a_base_of_fewer_bits(base: str, kind: str, tmp_path: Path) -> None:
    """The same as on a dense base of the very numbers that the codes stand for."""
    model = tiny()
    if base == "bf16":
        model.to(torch.bfloat16).float()
    dense = copy.deepcopy(model)
    if base == "bf16":
        model.to(torch.bfloat16)
    else:
        quantize(model, base, output=False)  # type: ignore[arg-type]
        with torch.no_grad():
            for name in [name for name, _ in dense.named_modules() if name.startswith("blocks.")]:
                if hasattr(dense.get_submodule(name), "adapter"):
                    linear_of(dense, name).weight.copy_(linear_of(model, name).dense_weight())
    for each in (model, dense):
        attach(each, AdapterConfig(kind=kind, rank=4, alpha=2.0), seed=2)
        move(each)
    expected, tolerance = dense(batch()), 0.1 if base == "bf16" else 1e-4
    found = model(batch()).float()
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
    expected.square().sum().backward()
    found.square().sum().backward()
    ours, theirs = adapter_of(model, "blocks.0.mlp.down"), adapter_of(dense, "blocks.0.mlp.down")
    for (_, left), (_, right) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert left.dtype == torch.float32
        assert float((left.grad - right.grad).abs().max()) <= 3 * tolerance * float(right.grad.abs().max())
    save_model(model, tmp_path / "merged")
    with torch.no_grad():
        plain = load_model(tmp_path / "merged")(batch()).float()
        merge(model)
        assert type(linear_of(model, "blocks.0.mlp.up")).__name__ == "Linear"
        assert torch.equal(plain, model(batch()).float())
        assert float((plain - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_merging_in_bf16_rounds_once() -> None:
    model = tiny().to(torch.bfloat16)
    attach(model, AdapterConfig(rank=4, alpha=8.0), seed=2)
    move(model)
    linear, adapter = linear_of(model, "blocks.1.attention.key"), adapter_of(model, "blocks.1.attention.key")
    expected = (linear.weight.float() + 2.0 * adapter.b @ adapter.a).bfloat16()
    merge(model)
    assert torch.equal(linear.weight, expected)
    assert not any(".adapter." in name for name, _ in model.named_parameters())
    with pytest.raises(ModelError, match="has no adapter"):
        merge(model)


def test_without_the_adapter_trained_modules_are_as_before(tmp_path: Path) -> None:
    reference("LlamaForCausalLM", tmp_path / "base", tie_word_embeddings=True)
    model = load_model(tmp_path / "base")
    before = model(batch()).detach()
    attach(model, AdapterConfig(kind="dora", trainable=["embeddings.token", "norm"]), seed=1)
    move(model)
    after = model(batch()).detach()
    assert float((after - before).abs().max()) > 0.1
    with without_adapter(model), torch.no_grad():
        assert torch.equal(model(batch()), before)
    assert torch.equal(model(batch()), after)
    with pytest.raises(RuntimeError), without_adapter(model):
        raise RuntimeError
    assert torch.equal(model(batch()), after)


def test_a_second_adapter_is_refused() -> None:
    model = tiny()
    attach(model, AdapterConfig(), seed=0)
    with pytest.raises(ModelError, match="has an adapter already"):
        attach(model, AdapterConfig(), seed=0)


def test_fingerprints_tell_models_apart_and_precisions_not() -> None:
    model = tiny()
    mark = fingerprint(model)
    assert fingerprint(copy.deepcopy(model).to(torch.bfloat16)) == mark
    with torch.no_grad():
        model.get_parameter("blocks.1.mlp.up.weight").mul_(1.01)
    assert fingerprint(model) != mark
    assert fingerprint(copy.deepcopy(model).half()) is None
    assert fingerprint(quantize(model, "int8")) is None


def test_parameters_and_bytes_in_closed_form() -> None:
    """Counted on SmolLM2-135M: 4,884,480 parameters of rank 16 on all linear maps, as PEFT prints for it."""
    linears = {
        "attention.query": (576, 576),
        "attention.key": (576, 192),
        "attention.value": (576, 192),
        "attention.output": (576, 576),
        "mlp.gate": (576, 1536),
        "mlp.up": (576, 1536),
        "mlp.down": (1536, 576),
    }
    assert AdapterTraining().parameter_count(linears, 30) == 4_884_480
    model = tiny(width=576, heads=9, kv_heads=3, mlp_width=1536)
    attach(model, AdapterConfig(kind="dora", ranks={"mlp.*": 4}), seed=0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert AdapterTraining(kind="dora", ranks={"mlp.*": 4}).parameter_count(linears, 2) == trained
    assert AdapterTraining().base_bytes(134_515_008, linears, 30) == 4 * 134_515_008
    assert AdapterTraining(base_dtype="bf16").base_bytes(134_515_008, linears, 30) == 2 * 134_515_008
    inside = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    assert AdapterTraining(base_dtype="int8").base_bytes(134_515_008, linears, 30) == inside + 2 * (
        134_515_008 - inside
    )


def test_the_length_of_rows_follows_every_change() -> None:
    """It is kept between passes, and may not be kept when A or B has changed in place, by a fused optimizer too."""
    model = tiny()
    attach(model, AdapterConfig(kind="dora", rank=4), seed=2)
    linear, adapter = linear_of(model, "blocks.0.mlp.up"), adapter_of(model, "blocks.0.mlp.up")

    def assert_exact() -> None:
        exact = (linear.weight + adapter.scale * adapter.b @ adapter.a).norm(dim=1)
        assert_close(adapter.lengths(linear), exact)  # type: ignore[attr-defined]

    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        with torch.no_grad():
            assert_exact()
            adapter.b.add_(0.1)
            assert_exact()
        linear(torch.ones(2, 64)).square().sum().backward()
        optimizer.step()
