"""Two ranks that share products, or sequences, have the losses and gradients of one; many families in one group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from llmkit.errors import ConfigError
from llmkit.model.config import ModelConfig
from llmkit.model.documents import documents_of
from llmkit.model.initialization import build
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer
from llmkit.pretrain.batches import Batch
from llmkit.pretrain.objective import LanguageModelling
from llmkit.train.losses import linear_cross_entropy_sum
from llmkit.train.parallel.context import SequencePart, sequence_part, share_sequences
from llmkit.train.parallel.tensor import share_products

# Two ranks have parts of different size of it.
VOCABULARY, LENGTH, ROWS = 53, 16, 3
FAMILIES = ("llama", "qwen3", "gemma2", "gemma3_text", "gpt2", "bert", "olmo2", "gpt_neox", "modernbert")
PREDICTED = torch.tensor([1, 3, 4, 9, 17, 20, 22, 33, 40, 41])


def architecture(family: str) -> ModelConfig:
    kv_heads = 2 if family in ("llama", "qwen3") else None
    spec = ModelSpec(
        family=family, layers=2, width=32, heads=4, kv_heads=kv_heads, mlp_width=48, context=LENGTH,
        init_std=0.2, tie_embeddings=family != "qwen3",
    )  # fmt: skip
    config = spec.resolve(VOCABULARY, pad_id=None, bos_id=None, eos_ids=())
    return config if config.window is None else config.model_copy(update={"window": 4})


def new_model(family: str) -> Transformer:
    """With norms and biases that are no ones and zeros."""
    model = build(architecture(family), seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def batches(causal: bool) -> list[Batch]:
    """Targets everywhere; at some places, with padding where a model needs to be told; documents kept apart."""
    generator = torch.Generator().manual_seed(0)
    ids, targets = torch.randint(VOCABULARY, (2, ROWS, LENGTH), generator=generator)
    everywhere = Batch(ids, targets.flatten())
    some = Batch(ids, targets.flatten()[PREDICTED], PREDICTED)
    real = torch.arange(LENGTH) < torch.tensor([[LENGTH], [11], [10]])
    apart = some._replace(documents=documents_of(ROWS, LENGTH, np.array([5, 9, 20, 33, 40])))
    return [everywhere, some if causal else some._replace(attention_mask=real), apart]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        found[name] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()
    model.zero_grad()
    return found


def compare(family: str, mesh: DeviceMesh, share: Callable[[Transformer, DeviceMesh], None]) -> None:
    model = new_model(family)
    objective = LanguageModelling(1e-3)
    expected = []
    for batch in batches(model.config.causal):
        output = objective.loss(model, batch)
        output.sum.backward()
        expected.append((float(output.sum.detach()), output.weight, gradients(model)))
    logits = model(batches(model.config.causal)[0].input_ids).detach()
    share(model, mesh)
    part = sequence_part(model)
    for batch, (loss, weight, wanted) in zip(batches(model.config.causal), expected, strict=True):
        output = objective.loss(model, batch)
        output.sum.backward()
        found = gradients(model)
        sums = [float(output.sum.detach()), float(output.weight)]
        if part is not None:
            # What the loop does for ranks that go through different tokens.
            sums = part.sum(sums)
            for gradient in found.values():
                dist.all_reduce(gradient)
        assert sums == pytest.approx([loss, weight], rel=1e-6)
        largest = max(float(gradient.norm()) for gradient in wanted.values())
        for name, gradient in wanted.items():
            # Biases of keys have no effect where no positions stand between them and the scores: theirs are zero.
            allowed = 1e-5 * float(gradient.norm()) + 1e-7 * largest
            assert float((found[name] - gradient).norm()) < allowed, f"{family}: {name}"
    if part is None:
        torch.testing.assert_close(model(batches(model.config.causal)[0].input_ids), logits, rtol=1e-4, atol=1e-4)


def plain_loss(features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """By definition, with a soft-cap of 5 and a z-loss of 0.01."""
    logits = 5 * torch.tanh((features @ weight.T + bias) / 5)
    z_loss = 0.01 * logits.logsumexp(1).square().sum()
    return F.cross_entropy(logits, targets, reduction="sum") + z_loss


def compare_loss(mesh: DeviceMesh) -> None:
    """The loss over a shared vocabulary is that in float64 by definition, with more tokens than fit at once."""
    generator = torch.Generator().manual_seed(1)
    count, width, size = 1100, 8, 5001
    values = [torch.randn(shape, generator=generator).double() for shape in ((count, width), (size, width), (size,))]
    targets = torch.randint(size, (count,), generator=generator)
    leaves = [value.clone().requires_grad_() for value in values]
    wanted = plain_loss(leaves[0], leaves[1], leaves[2], targets)
    wanted.backward()
    features = values[0].clone().requires_grad_()
    weight, bias = (
        distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None).requires_grad_() for value in values[1:]
    )
    found = linear_cross_entropy_sum(features, weight, targets, bias=bias, softcap=5.0, z_loss=0.01)
    (3 * found.sum).backward()
    logits = values[0] @ values[1].T + values[2]
    assert int(found.right) == int((logits.argmax(1) == targets).sum())
    torch.testing.assert_close(found.sum, wanted, rtol=1e-12, atol=0)
    assert features.grad is not None
    # Each rank has a part of a sum.
    dist.all_reduce(features.grad)
    for leaf, shared in zip(leaves, (features, weight, bias), strict=True):
        gradient = shared.grad
        assert gradient is not None
        assert leaf.grad is not None
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        torch.testing.assert_close(whole, 3 * leaf.grad, rtol=1e-9, atol=1e-9)


def refuse(mesh: DeviceMesh) -> None:
    """What is not computed is said, in the passes too."""
    experts = ModelSpec(family="mixtral", layers=1, width=32, heads=4, expert_width=16, experts=4, context=LENGTH)
    config = experts.resolve(VOCABULARY, pad_id=None, bos_id=None, eos_ids=())
    for share in (share_products, share_sequences):
        with pytest.raises(ConfigError, match="experts"):
            share(build(config, seed=0), mesh)
    odd = architecture("llama").model_copy(update={"mlp_width": 47})
    with pytest.raises(ConfigError, match=r"2 ranks do not divide mlp_width \(47\)"):
        share_products(build(odd, seed=0), mesh)
    model = new_model("llama")
    share_products(model, mesh)
    with pytest.raises(ConfigError, match="sequences of 15 tokens"):
        model.hidden(torch.zeros(1, 15, dtype=torch.int64))


def on_each_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    for family in FAMILIES:
        compare(family, mesh, share_products)
        compare(family, mesh, share_sequences)
    compare_loss(mesh)
    refuse(mesh)
    dist.destroy_process_group()


def test_two_ranks_have_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    run_ranks(on_each_rank, 2, tmp_path)


def test_parts_of_sequences_are_all_of_them_with_early_and_late_tokens_paired() -> None:
    parts = [SequencePart(index, 3, causal=True, group=None) for index in range(3)]
    places = [part.places(12) for part in parts]
    assert [found.tolist() for found in places] == [[0, 1, 10, 11], [2, 3, 8, 9], [4, 5, 6, 7]]
    # Keys seen, all queries together: the same on every rank.
    assert len({int((found + 1).sum()) for found in places}) == 1
    with pytest.raises(ConfigError, match="6 even pieces"):
        parts[0].places(10)
    assert SequencePart(1, 2, causal=False, group=None).places(8).tolist() == [4, 5, 6, 7]
