"""Ranks of a test: processes forked from one that has imported torch, which each of them would take seconds for."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

# The server is a fresh process with a single thread, and computes nothing: what it has imported is safe to fork.
multiprocessing.set_forkserver_preload(
    ["torch.distributed", "llmkit.pretrain.stage", "torch.distributed.tensor.parallel"]
)


def run_ranks(function: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in as many processes at once; the first that fails is raised here."""
    mp.start_processes(function, arguments, nprocs=ranks, start_method="forkserver")
