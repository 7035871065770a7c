"""The transformer itself: padding, seeds, precision, dropout, tied weights, compilation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from llmkit.model.config import ModelConfig, RopeScaling
from llmkit.model.initialization import build
from llmkit.model.rotary import rotary_frequencies, rotate
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer

FAMILIES = ["llama", "gpt2", "bert"]


def _config(family: str, **settings: Any) -> ModelConfig:
    spec = ModelSpec(family=family, layers=2, width=32, heads=4, context=32, init_std=0.2, **settings)
    return spec.resolve(40, pad_id=0)


def _model(family: str, **settings: Any) -> Transformer:
    return build(_config(family, **settings), seed=1).eval()


@pytest.mark.parametrize("head", ["own", "reward", "classification"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_right_changes_no_real_row(family: str, head: Any) -> None:
    config = _config(family)
    if head != "own":
        config = config.with_head(head, ("a", "b") if head == "classification" else ())
    model = build(config, seed=1).eval()
    rows = [torch.randint(1, 40, (length,)) for length in (12, 5, 1)]
    outputs = []
    for filler in (0, 17):
        padded = torch.full((3, 12), filler)
        mask = torch.zeros(3, 12, dtype=torch.int64)
        for index, row in enumerate(rows):
            padded[index, : len(row)] = row
            mask[index, : len(row)] = 1
        outputs.append(model(padded, mask))
    for index, row in enumerate(rows):
        alone = model(row[None])[0]
        for output in outputs:
            together = output[index, : len(row)] if head == "own" else output[index]
            torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("row", [[0, 1, 1, 1], [1, 0, 1, 1]])
def test_padding_elsewhere_is_refused(family: str, row: list[int]) -> None:
    with pytest.raises(ValueError, match="padding must be on the right"):
        _model(family)(torch.ones(2, 4, dtype=torch.int64), torch.tensor([[1, 1, 1, 1], row]))


def test_an_empty_row_gives_numbers() -> None:
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    for family in FAMILIES:
        assert _model(family)(torch.ones(2, 3, dtype=torch.int64), mask).isfinite().all()


def test_a_causal_model_sees_no_later_token_and_an_encoder_does() -> None:
    input_ids = torch.randint(1, 40, (1, 10))
    changed = input_ids.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 40
    for family in FAMILIES:
        model = _model(family)
        same = torch.isclose(model(input_ids), model(changed), atol=1e-6).all(dim=-1)[0]
        assert same[:7].all() == (family != "bert")
        assert not same[7:].any()


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_sequence_beyond_learned_positions_is_refused(family: str) -> None:
    with pytest.raises(ValueError, match="33 tokens exceeds the model's context of 32"):
        _model(family)(torch.ones(1, 33, dtype=torch.int64))


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = build(_config("llama"), seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    second, third = build(_config("llama"), seed=5), build(_config("llama"), seed=6)
    for (name, one), two, other in zip(first.named_parameters(), second.parameters(), third.parameters(), strict=True):
        assert torch.equal(one, two)
        assert "norm" in name or not torch.equal(one, other)


def test_a_weight_does_not_depend_on_the_rest_of_the_model() -> None:
    deep = ModelSpec(family="bert", layers=3, width=32, heads=4, init_std=0.2).resolve(40, pad_id=0)
    one, two = build(_config("bert"), seed=5), build(deep.with_head("reward"), seed=5)
    assert torch.equal(one.blocks[1].mlp.up.weight, two.blocks[1].mlp.up.weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_weights_have_their_standard_deviations(family: str) -> None:
    spec = ModelSpec(family=family, layers=8, width=128, init_std=0.05)
    model = build(spec.resolve(1000, pad_id=7), seed=0)
    scaled = 0.05 / math.sqrt(16) if family != "bert" else 0.05
    assert model.blocks[3].mlp.down.weight.std().item() == pytest.approx(scaled, rel=0.02)
    assert model.blocks[7].attention.output.weight.std().item() == pytest.approx(scaled, rel=0.02)
    assert model.blocks[0].attention.query.weight.std().item() == pytest.approx(0.05, rel=0.02)
    assert model.embeddings.token.weight.std().item() == pytest.approx(0.05, rel=0.02)
    assert model.blocks[0].mlp_norm.weight.eq(1).all()
    if family == "bert":
        assert model.embeddings.token.weight[7].eq(0).all()
        assert model.head.projection.bias.eq(0).all()


def test_a_fresh_language_model_predicts_nearly_uniformly() -> None:
    config = ModelSpec(family="llama", layers=4, width=128).resolve(500, pad_id=0)
    logits = build(config, seed=0)(torch.randint(0, 500, (2, 50)))
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean().item()
    assert entropy == pytest.approx(math.log(500), abs=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_works_in_training_alone(family: str) -> None:
    model = _model(family, dropout=0.3)
    input_ids = torch.randint(1, 40, (2, 8))
    assert torch.equal(model(input_ids), model(input_ids))
    model.train()
    assert not torch.equal(model(input_ids), model(input_ids))
    torch.manual_seed(0)
    first = model(input_ids)
    torch.manual_seed(0)
    assert torch.equal(first, model(input_ids))


def test_the_projection_is_the_embedding_where_tied() -> None:
    for family in FAMILIES:
        tied, untied = _model(family), _model(family, tie_embeddings=False)
        assert tied.head.projection.weight is tied.embeddings.token.weight
        assert untied.head.projection.weight is not untied.embeddings.token.weight
        clone = _model(family)
        clone.load_state_dict(tied.state_dict())
        assert clone.head.projection.weight is clone.embeddings.token.weight


@pytest.mark.parametrize("family", FAMILIES)
def test_autocast_is_near_full_precision(family: str) -> None:
    model = _model(family)
    input_ids = torch.randint(1, 40, (2, 20))
    exact = model(input_ids)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(input_ids)
    assert cast.dtype == torch.bfloat16
    assert (cast.float() - exact).norm() < 0.03 * exact.norm()


def test_a_sequence_head_scores_in_full_precision_under_autocast() -> None:
    model = build(_config("llama").with_head("reward"), seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randint(1, 40, (2, 20))).dtype == torch.float32


def test_frequencies_survive_a_change_of_precision_and_of_device() -> None:
    model = _model("llama")
    assert model.rotary is not None
    exact = model.rotary.frequencies.clone()
    model.to(torch.bfloat16)
    assert torch.equal(model.rotary.frequencies, exact)
    empty = Transformer(_config("llama")).to("meta").to_empty(device="cpu")
    assert empty.rotary is not None
    assert torch.equal(empty.rotary.frequencies, exact)


def test_rotation_depends_on_distance_alone_and_keeps_lengths() -> None:
    model = _model("llama")
    assert model.rotary is not None
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=generator, dtype=torch.float64)
    turned = []
    for at in ([3, 8], [20, 25]):
        cosine, sine = model.rotary(torch.tensor(at), torch.float64)
        turned.append((rotate(query, cosine[:1], sine[:1]), rotate(key, cosine[1:], sine[1:])))
    products = [(one * two).sum().item() for one, two in turned]
    assert products[0] == pytest.approx(products[1], rel=1e-5)
    assert turned[0][0].norm().item() == pytest.approx(query.norm().item(), rel=1e-6)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones() -> None:
    scaling = RopeScaling(kind="llama3", factor=8, low_freq_factor=1, high_freq_factor=4, original_context=8192)
    plain = ModelSpec(family="llama", layers=1, width=64, heads=1, rope_theta=500000.0).resolve(10, pad_id=0)
    before = rotary_frequencies(plain)
    after = rotary_frequencies(plain.model_copy(update={"rope_scaling": scaling}))
    for old, new in zip(before.tolist(), after.tolist(), strict=True):
        turns = 8192 * old / (2 * math.pi)
        share = min(1.0, max(0.0, (turns - 1) / (4 - 1)))
        assert new == pytest.approx((1 - share) * old / 8 + share * old, rel=1e-5)
    assert after[0] == before[0]
    assert after[-1] == pytest.approx(before[-1].item() / 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_pass_is_one_graph(family: str) -> None:
    """No graph breaks: dynamo refuses them under fullgraph."""
    model = _model(family)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    input_ids = torch.randint(1, 40, (2, 12))
    mask = (torch.arange(12) < torch.tensor([12, 7])[:, None]).long()
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = model(input_ids, mask), compiled(input_ids, mask)
    assert torch.equal(actual[0], expected[0])
