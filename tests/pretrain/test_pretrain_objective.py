from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from llmkit.model.initialization import build
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer
from llmkit.pretrain.batches import Batch, causal_batch, masked_batch, split_batch
from llmkit.pretrain.config import MaskConfig
from llmkit.pretrain.masking import Masking
from llmkit.pretrain.objective import HeldOutText, LanguageModelling, held_out_loss

VOCABULARY = 40


def model(family: str) -> Transformer:
    spec = ModelSpec(family=family, layers=2, width=32, heads=2, context=32, init_std=0.2)
    return build(spec.resolve(VOCABULARY, pad_id=0), seed=1)


def batch(family: str, rows: int = 4) -> Batch:
    tokens = np.random.default_rng(0).integers(5, VOCABULARY, (rows, 13))
    if family == "llama":
        return causal_batch(tokens)
    masking = Masking(MaskConfig(probability=0.4), mask_id=4, vocab_size=VOCABULARY, special_ids=range(5), seed=1)
    return masked_batch(tokens, masking, "train", 0)


def reference(family: str) -> float:
    """Sum of -log softmax at the targets in float64, from the logits of the whole forward pass."""
    made = batch(family)
    logits = model(family).double()(made.input_ids).detach().numpy().reshape(-1, VOCABULARY)
    places = range(len(logits)) if made.positions is None else made.positions.tolist()
    total = 0.0
    for place, target in zip(places, made.targets.tolist(), strict=True):
        row = logits[place]
        total += math.log(np.exp(row - row.max()).sum()) + row.max() - row[target]
    return total


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_loss_is_that_of_float64(family: str) -> None:
    output = LanguageModelling().loss(model(family), batch(family))
    assert output.sum.item() == pytest.approx(reference(family), rel=1e-6)
    assert output.weight == len(batch(family).targets)
    assert output.tokens == batch(family).input_ids.numel()


def test_the_masked_loss_ignores_what_is_not_hidden() -> None:
    made = batch("bert")
    assert made.positions is not None
    network = model("bert")
    hidden = network.hidden(made.input_ids)
    disturbed = hidden.detach().clone().requires_grad_()
    elsewhere = torch.ones(made.input_ids.numel(), dtype=torch.bool)
    elsewhere[made.positions] = False
    network.hidden = lambda *arguments, **keywords: disturbed  # type: ignore[method-assign]
    LanguageModelling().loss(network, made).sum.backward()
    assert disturbed.grad is not None
    gradient = disturbed.grad.flatten(0, 1)
    assert not gradient[elsewhere].any()
    assert gradient[made.positions].any(1).all()


def gradients(family: str, micro_batch_size: int) -> dict[str, Tensor]:
    network, objective = model(family), LanguageModelling()
    parts = split_batch(batch(family), micro_batch_size)
    weight = 0.0
    for part in parts:
        output = objective.loss(network, part)
        output.sum.backward()
        weight += float(output.weight)
    return {name: p.grad / weight for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_gradients_do_not_depend_on_the_micro_batch(family: str, micro_batch_size: int) -> None:
    whole, parts = gradients(family, 4), gradients(family, micro_batch_size)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        assert (gradient - parts[name]).abs().max() < 1e-6, name


def test_the_measure_on_held_out_text() -> None:
    network = model("llama").eval()
    parts = split_batch(batch("llama"), 2)
    with torch.no_grad():
        found = held_out_loss({"text": HeldOutText(parts, 0.25)})(network)
    loss = reference("llama") / 48
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(loss * 0.25, rel=1e-6)
    with torch.no_grad():
        assert "bits_per_byte" not in held_out_loss({"text": HeldOutText(parts, None)})(network)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_z_loss_is_trained_on_and_told_apart(family: str) -> None:
    made, network = batch(family), model(family)
    output = LanguageModelling(z_loss=0.01).loss(network, made)
    logits = network(made.input_ids).detach().double().reshape(-1, VOCABULARY)
    chosen = logits if made.positions is None else logits[made.positions]
    extra = 0.01 * chosen.logsumexp(1).square().sum().item()
    assert output.sum.item() == pytest.approx(reference(family) + extra, rel=1e-5)
    assert [float(value) for value in output.metrics["z_loss"]] == pytest.approx([extra, len(made.targets)], rel=1e-5)
    assert [float(value) for value in output.metrics["loss"]] == pytest.approx(
        [reference(family), len(made.targets)], rel=1e-5
    )
    measured = LanguageModelling(z_loss=0.01).loss(network.eval(), made)
    assert measured.sum.item() == pytest.approx(reference(family), rel=1e-6)
    assert measured.metrics == {}
