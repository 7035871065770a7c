"""What is planned, held against what torch's profiler and FLOP counter measure of training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from llmkit.config.base import Facts
from llmkit.errors import ConfigError
from llmkit.model.initialization import build, outline
from llmkit.pretrain.batches import Batch
from llmkit.pretrain.config import PretrainConfig
from llmkit.pretrain.objective import LanguageModelling
from llmkit.pretrain.plan import plan, training_work
from llmkit.store.stage import Plan
from llmkit.train.memory.config import size_in_bytes
from llmkit.train.memory.machines import Machine, named_machine
from llmkit.train.memory.plan import USABLE, Planner
from llmkit.train.memory.recompute import recompute_activations
from llmkit.train.optimizers.build import build_optimizers
from llmkit.train.optimizers.rounding import narrow_trained_weights

VOCABULARY = 600
CPU = Machine("cpu", "cpu", 2e11, 1e11, 16e9, None, None)
LLAMA = {"family": "llama", "layers": 3, "width": 128, "heads": 2, "context": 128}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model": LLAMA, "precision": "bf16"},
    "gpt2-accumulating-checkpointing": {
        "model": {"family": "gpt2", "layers": 4, "width": 128, "heads": 4, "context": 256, "dropout": 0.1},
        "precision": "fp32",
        "micro_batch_size": 4,
        "activation_checkpointing": "full",
    },
    "bert-muon": {
        "model": {"family": "bert", "layers": 3, "width": 128, "heads": 2, "context": 128},
        "precision": "bf16",
        "optimizer": {"name": "muon", "lr": 1e-3},
    },
    "mixtral-selective-lion": {
        "model": {**LLAMA, "family": "mixtral", "experts": 4, "expert_width": 256},
        "precision": "bf16",
        "optimizer": {"name": "lion", "lr": 1e-4, "betas": [0.9, 0.99]},
        "activation_checkpointing": "selective",
    },
    "gemma3-pure-adafactor": {
        "model": {"family": "gemma3_text", "layers": 3, "width": 128, "heads": 2, "kv_heads": 1, "context": 256},
        "precision": "bf16-pure",
        "batch_size": 4,
        "micro_batch_size": 2,
        "optimizer": {"name": "adafactor", "lr": 1e-3},
        "activation_checkpointing": {"blocks": 2},
    },
}


def settings(**values: Any) -> PretrainConfig:
    return PretrainConfig.model_validate({"data": "tokens", "steps": 1, "batch_size": 8, **values})


def planned(config: PretrainConfig, machine: Machine = CPU) -> Plan:
    return plan(config, {"data": Facts("tokens", {"vocab_size": VOCABULARY})}, machine)


class Training:
    """Steps as the loop makes them."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config, self.pure = config, config.precision == "bf16-pure"
        self.dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
        self.model = build(config.architecture(VOCABULARY), seed=1).train()
        if self.pure:
            narrow_trained_weights(self.model)
        recompute_activations(self.model, config)
        self.optimizers = build_optimizers(self.model, config.optimizer, self.dtype)

    def step(self) -> None:
        length = self.model.config.context
        for _ in range(self.config.batch_size // self.config.micro_batch):
            ids = torch.randint(VOCABULARY, (self.config.micro_batch, length))
            chosen = None if self.model.config.causal else torch.arange(round(0.15 * ids.numel()))
            batch = Batch(ids, ids.flatten() if chosen is None else ids.flatten()[chosen], chosen)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                output = LanguageModelling().loss(self.model, batch)
            output.sum.backward()
            del output
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def peak_bytes(config: PretrainConfig, trace: Path) -> int:
    """The most that torch's allocator had given out at any moment of two steps, weights included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        training = Training(config)
        training.step()
        training.step()
    profiler.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    live = most = 0
    for event in events:
        live += event["args"]["Bytes"]
        most = max(most, live)
    return most


def attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Two products over all pairs of tokens, of heads that share keys as well."""
    batch, heads, length, width = query
    return 2 * 2 * batch * heads * length * key[2] * width


def attention_backward(_: torch.Size, query: torch.Size, key: torch.Size, *__: Any, **___: Any) -> int:
    """The four products of the derivative, without the scores computed again."""
    batch, heads, length, width = query
    return 4 * 2 * batch * heads * length * key[2] * width


def short(query: torch.Size, *_: Any, **__: Any) -> int:
    batch, length, heads, width = query
    return 2 * 2 * batch * heads * length * length * width


def short_backward(_: torch.Size, kept: list[torch.Size], *__: Any, **___: Any) -> int:
    batch, heads, length, width = kept[0]
    return 4 * 2 * batch * heads * length * length * width


def counted_flops(config: PretrainConfig) -> int:
    """Those of a step's matrix products, as torch counts them where they run."""
    own = torch.ops.llmkit
    formulas = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
        own.short_attention: short,
        own.short_attention_backward: short_backward,
    }
    training = Training(config)
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        training.step()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("name", list(CONFIGS))
def test_memory_is_within_a_tenth_and_flops_within_a_hundredth_of_what_is_measured(name: str, tmp_path: Path) -> None:
    config = settings(**CONFIGS[name])
    found = planned(config)
    assert found.flops is not None
    assert sum(found.memory_bytes.values()) == pytest.approx(peak_bytes(config, tmp_path / "trace.json"), rel=0.1)
    assert found.flops + sum(found.extra_flops.values()) == pytest.approx(counted_flops(config), rel=0.01)


def parts(machine: Machine, **values: Any) -> dict[str, int]:
    config = settings(
        **{**CONFIGS["llama"], "batch_size": 64, "micro_batch_size": 4, "optimizer": {"name": "adamw"}, **values}
    )
    return dict(planned(config, machine).memory_bytes)


def test_the_parts_of_a_mesh() -> None:
    h100 = named_machine("h100")
    eight = replace(h100, count=8)
    config = settings(**CONFIGS["llama"])
    parameters = config.architecture(VOCABULARY).parameter_count()
    alone = parts(h100)
    # The cosines and sines' frequencies are the only buffers.
    assert alone["weights"] == pytest.approx(4 * parameters, rel=1e-3)
    assert alone["optimizer"] == pytest.approx(8 * parameters, rel=1e-3)
    # An average of the weights is kept beside the moments.
    averaging = parts(h100, average={"decay": 0.99})
    assert averaging["weights"] == alone["weights"]
    assert averaging["optimizer"] == pytest.approx(12 * parameters, rel=1e-3)
    # DDP divides the rows alone; with one micro-batch each, activations are the same.
    assert parts(eight)["weights"] == alone["weights"]
    assert parts(eight)["activations"] == pytest.approx(alone["activations"], rel=0.02)
    sharded = parts(eight, parallel={"shard": 8})
    assert sharded["weights"] == pytest.approx(4 * parameters / 8, rel=1e-3)
    assert sharded["optimizer"] == pytest.approx(8 * parameters / 8, rel=1e-3)
    hybrid = parts(eight, parallel={"replicate": 2, "shard": 2, "tensor": 2})
    assert hybrid["weights"] == pytest.approx(4 * parameters / 4, rel=1e-3)
    assert hybrid["activations"] < 0.6 * alone["activations"]
    split = parts(replace(h100, count=2), parallel={"context": 2}, micro_batch_size=None, batch_size=8)
    whole = parts(h100, micro_batch_size=None, batch_size=8)
    assert split["activations"] < 0.6 * whole["activations"]
    with pytest.raises(ConfigError, match="a multiple of 3 ranks"):
        parts(eight, parallel={"shard": 3}, batch_size=63, micro_batch_size=None)


def test_auto_takes_the_largest_micro_batch_that_fits() -> None:
    small = {**LLAMA, "layers": 1}
    values = {**CONFIGS["llama"], "model": small, "batch_size": 64, "micro_batch_size": "auto"}
    work = training_work(settings(**values), outline(settings(**values).architecture(VOCABULARY)), 128)
    reference = Planner(settings(**values), work, CPU)
    wanted = sum(reference.parts(16).values())
    machine = Machine("small", "cpu", 2e11, 1e11, wanted / USABLE + 1, None, None)
    found = planned(settings(**values), machine)
    assert (found.micro_batch, found.fits) == (16, True)
    assert "micro-batches of 16 rows are the largest that fit" in found.notes[0]
    fixed = planned(settings(**{**values, "micro_batch_size": 32}), machine)
    assert not fixed.fits
    assert "With `micro_batch_size: 16` it does." in fixed.notes[0]
    tiny = Machine("tiny", "cpu", 2e11, 1e11, 1e6, None, None)
    hopeless = planned(settings(**values), tiny)
    assert (hopeless.micro_batch, hopeless.fits) == (1, False)
    assert "Take a smaller model" in hopeless.notes[0]


def test_a_budget_recomputes_as_few_blocks_as_keep_to_it() -> None:
    model = {**LLAMA, "layers": 4, "width": 64, "heads": 1}
    config = settings(**{**CONFIGS["llama"], "model": model})
    work = training_work(config, outline(config.architecture(VOCABULARY)), 128)

    whole = Planner(config, work, CPU)

    def planner(checkpointing: Any) -> Planner:
        changed = settings(**{**CONFIGS["llama"], "activation_checkpointing": checkpointing})
        return whole.altered(1, activation_checkpointing=changed.activation_checkpointing)

    kept = [planner({"blocks": count} if count else "none").cost(8).activations for count in range(5)]
    for budget in (kept[0] + 1, kept[2] + 1, kept[2] - 1):
        expected = next(count for count, size in enumerate(kept) if size <= budget)
        assert planner({"budget": budget}).checkpointing(8) == expected
    assert planner({"budget": 0.6}).budget(8) == pytest.approx(0.6 * kept[0])
    assert planner({"budget": "1KiB"}).checkpointing(8) == 4


def test_sizes_and_devices_are_read_with_care() -> None:
    assert size_in_bytes("6GiB") == 6 * 2**30
    assert size_in_bytes("1.5 MiB") == 1.5 * 2**20
    with pytest.raises(ValueError, match="no size"):
        size_in_bytes("6GB")
    assert named_machine("A100").memory == 80e9
    assert named_machine("RTX 4090") == named_machine("rtx-4090")
    # NVIDIA's H100 SXM: 1,979 TFLOP/s with sparsity, which is half as many without.
    assert named_machine("h100").rate("bf16") == pytest.approx(1979e12 / 2, rel=1e-3)
    # No bf16 units: fp32 it is.
    assert named_machine("t4").precision("auto") == "fp32"
    with pytest.raises(ConfigError, match="not among the devices") as raised:
        named_machine("h1000")
    assert "h100" in str(raised.value.hint)
