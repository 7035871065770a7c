"""Device, threads and precision of a run, measured once and written down, so that a resumed run computes alike.

`engine.json` in the stage's directory holds the choice: a second measurement could come out otherwise, and bits depend
on precision and on the number of threads.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from llmkit.console import say, warn
from llmkit.errors import ConfigError
from llmkit.store.files import write_json_atomic
from llmkit.train import float8
from llmkit.train.blocks import repeated_blocks
from llmkit.train.config import TrainConfig
from llmkit.train.launch import processors

FILE = "engine.json"
# Hardware without bfloat16 units is slower with it and hardware with them at least twice as fast: what lies between is
# noise, and a choice that could come out either way would make two runs of one config differ.
CLEARLY_FASTER = 1.2
_SECONDS = 1.0
_SLOW = 0.01
"""Seconds of a small product on a CPU that does not compute in its dtype; a larger one says nothing new."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-pure": torch.bfloat16, "float8": torch.bfloat16}


@dataclass(frozen=True)
class Engine:
    """What a run computes on, and how.

    Args:
        device: "cpu" or "cuda".
        threads: threads of CPU operations.
        precision: "fp32", "bf16", "bf16-pure", with weights in bfloat16 as well, or "float8", with the products of
            blocks in 8 bits and the others in bfloat16.
        reason: why this precision, as a sentence.
        matrix_rate: floating-point operations a second of a large matrix product in `dtype`.
        micro_batch: sequences that go through the model at once, where that was left to the machine.
    """

    device: str
    threads: int
    precision: str
    reason: str
    matrix_rate: float
    micro_batch: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products that are not in float8."""
        return _DTYPES[self.precision]

    def autocast(self) -> AbstractContextManager[object]:
        """The context that the forward pass runs in; weights stay what they are."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device, dtype=self.dtype)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Use these threads and deterministic kernels; what was set before returns on leaving."""
        deterministic = torch.are_deterministic_algorithms_enabled()
        fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        if self.device == "cuda":
            # cuBLAS is deterministic only with a workspace of fixed size, which it reads from here.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            with _threads(self.threads):
                yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def training_device(config: TrainConfig, where: str | None = None) -> torch.device:
    """The device that a stage's `device` stands for.

    Raises:
        ConfigError: `cuda` is asked for and not there.
    """
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise ConfigError(
            "this machine has no CUDA device that torch can use.", where=where, hint="Set `device: auto`."
        )
    return torch.device("cuda" if there and config.device != "cpu" else "cpu")


def prepare_engine(config: TrainConfig, model: nn.Module, directory: Path, where: str | None = None) -> Engine:
    """The engine of a run: as written down by an earlier attempt, or measured now and written down."""
    device = training_device(config, where).type
    stored = read_engine(directory)
    if stored is not None and stored.device == device:
        return stored
    if stored is not None:
        warn(f"the interrupted attempt ran on {stored.device}, this one runs on {device}: the bits will differ.")
    lacking = float8.why_not(device) if config.precision == "float8" else None
    if lacking is not None:
        raise ConfigError(
            f"float8 needs a CUDA device of compute capability 8.9 or more: {lacking}.",
            where=where,
            hint="Set `precision: bf16`.",
        )
    precision, reason = (
        choose_precision(model, device) if config.precision == "auto" else (config.precision, "as configured")
    )
    threads = thread_count()
    with _threads(threads):
        rate = matrix_rate(device, _DTYPES[precision])
    engine = Engine(device, threads, precision, reason, rate)
    write_json_atomic(directory / FILE, asdict(engine))
    say(f"training on {device} in {precision}: {reason} ({engine.matrix_rate / 1e9:,.0f} GFLOP/s in matrix products)")
    return engine


def read_engine(directory: Path) -> Engine | None:
    """The engine that an earlier attempt has written down, if it has."""
    path = directory / FILE
    if not path.is_file():
        return None
    return Engine(**json.loads(path.read_text(encoding="utf-8")))


def thread_count() -> int:
    """Threads for CPU operations: torch's choice, and no more than a container's share of processors allows."""
    return min(torch.get_num_threads(), processors())


def choose_precision(model: nn.Module, device: str) -> tuple[str, str]:
    """ "bf16" where a linear layer of the model's size is clearly faster with it, forward and backward, else "fp32".

    On a CPU one thread's processor time is compared: what else the machine does hardly changes it, so two runs of one
    config choose alike.

    Returns:
        the precision and the reason.
    """
    rows, columns = _typical_matrix(model)
    tokens = int(min(2048, max(64, 4e9 // (6 * rows * columns)))) if device == "cpu" else 8192
    weight = torch.randn(rows, columns, device=device, requires_grad=True)
    inputs = torch.randn(tokens, columns, device=device, requires_grad=True)
    contexts: dict[str, AbstractContextManager[object]] = {
        "fp32": nullcontext(),
        "bf16": torch.autocast(device, dtype=torch.bfloat16),
    }
    clock = time.thread_time if device == "cpu" else time.perf_counter
    seconds = {"fp32": math.inf, "bf16": math.inf}
    with _threads(1):
        for _ in _turns(8):
            for precision, context in contexts.items():
                with context:
                    run = _timed(lambda: F.linear(inputs, weight).float().sum().backward(), device, clock)
                seconds[precision] = min(seconds[precision], run)
    ratio = seconds["fp32"] / seconds["bf16"]
    shape = f"a {rows} x {columns} layer on {tokens:,} tokens"
    if ratio >= CLEARLY_FASTER:
        return "bf16", f"{shape} trains {ratio:.1f} times as fast in bf16 as in fp32"
    return "fp32", f"bf16 is not clearly faster here ({shape} trains {ratio:.1f} times as fast as in fp32)"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Use this many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _typical_matrix(model: nn.Module) -> tuple[int, int]:
    """Shape of the largest matrix inside the model's blocks."""
    inside = [parameter for block in repeated_blocks(model) for parameter in block.parameters()]
    matrices = [p for p in inside or model.parameters() if p.dim() == 2]
    if not matrices:
        return 512, 512
    largest = max(matrices, key=lambda parameter: parameter.numel())
    return largest.shape[0], largest.shape[1]


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product; the best of several."""
    rate = 0.0
    for size in (256, 1024) if device == "cpu" else (8192,):
        left = torch.randn(size, size, device=device, dtype=dtype)
        right = torch.randn(size, size, device=device, dtype=dtype)
        seconds = min(_timed(partial(torch.matmul, left, right), device, time.perf_counter) for _ in _turns(20))
        rate = 2 * size**3 / seconds
        if seconds > _SLOW:
            break
    return rate


def _turns(most: int) -> Iterator[int]:
    """Turns of a measurement, two at least; of slow ones, as bf16 on a CPU without units for it, few are enough."""
    end = time.perf_counter() + _SECONDS
    for turn in range(most):
        if turn >= 2 and time.perf_counter() > end:
            return
        yield turn


def _timed(work: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start
