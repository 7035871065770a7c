"""A rank that is gone, as the one left sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from llmkit.train.launch import LostRankError, is_broken_connection

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, sys
import torch
import torch.distributed as dist
from llmkit.train.launch import is_broken_connection

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
dist.barrier()
if rank:
    os._exit(9)
try:
    while True:
        dist.all_reduce(torch.ones(1))
except Exception as error:
    print(is_broken_connection(error))
"""


def test_a_collective_that_breaks_off_is_told_from_other_errors(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate()[0] for rank in ranks]
    assert said[0] == "True\n"
    assert ranks[1].returncode == 9
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("gloo/transport"), KeyError()):
        assert not is_broken_connection(error)
    assert LostRankError().exit_code == 1
