"""How a competitor of `pretrain.py` in a process of its own takes turns with the others.

A training loop calls `Turns.step()` where each of its steps begins. Whole steps are timed so, whatever a loop does in
them: data, the passes, clipping, the update, what it logs. Between its turns a process waits and uses nothing.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time

import torch
from torch import Tensor

SPECIAL_IDS = 5
MASK_ID = 4
MASK_SHARE = 0.15
BATCHES = 64


class Turns:
    """Warm-up, then blocks of steps on demand.

    Args:
        warmup: steps before the first turn, compilation included.
        steps: steps of a turn.
    """

    def __init__(self, warmup: int, steps: int) -> None:
        # What libraries print is no part of the conversation.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._left, self._steps = warmup, steps
        self._began = time.perf_counter()

    def step(self) -> None:
        """To be called where a step begins; waits for the next turn where the last one's steps are done."""
        if not self._left:
            found = {"seconds": time.perf_counter() - self._began}
            # The kernel counts kilobytes.
            found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps(found), file=self._answers, flush=True)
            if not sys.stdin.readline():
                os._exit(0)
            self._left, self._began = self._steps, time.perf_counter()
        self._left -= 1


def random_tokens(vocabulary: int, batch: int, length: int) -> Tensor:
    """What all competitors learn from: int64 [batches, batch, length]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(SPECIAL_IDS, vocabulary, (BATCHES, batch, length), generator=generator)


def hidden_tokens(tokens: Tensor) -> Tensor:
    """Which of them are to be guessed: the same number in each sequence, as in the first BERT."""
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(tokens.shape, generator=generator).argsort(dim=2)
    return order < round(MASK_SHARE * tokens.shape[2])
