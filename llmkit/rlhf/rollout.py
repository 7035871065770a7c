"""Answers of a policy together with all that is learnt from them.

Shapes: B rows (answers), L tokens, T = L - 1: position p of a [B, T] tensor is about token p + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from llmkit.rlhf.encoding import pad, span_mask

# Values by token; zero outside the answers.
_BY_TOKEN = ("advantages", "old_logprobs", "ref_logprobs", "values", "returns")


@dataclass(frozen=True)
class Rollout:
    """Answers and their worth; also any part of them, as a batch.

    Args:
        input_ids: int64 [B, L], prompts and answers, padded on the right.
        begins, ends: int64 [B], where the answers stand.
        finished: bool [B], whether the model ended its answer.
        counted: bool [B], whether the answer is learnt from.
        rewards: fp32 [B].
        parts: fp32 [B, functions], what the rewards are made of; NaN where a function does not apply.
        advantages: fp32 [B, T].
        old_logprobs: fp32 [B, T], under the policy that wrote the answers; None where each rollout serves one
            optimizer step only, whose own log-probabilities they then are.
        ref_logprobs: fp32 [B, T], under the starting model; None without a divergence penalty.
        values, returns: fp32 [B, T], of the value head; None without one.
    """

    input_ids: Tensor
    begins: Tensor
    ends: Tensor
    finished: Tensor
    counted: Tensor
    rewards: Tensor
    parts: Tensor
    advantages: Tensor
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def mask(self) -> Tensor:
        """bool [B, T], true where the next token is one of the answer."""
        return span_mask(self.begins - 1, self.ends - 1, self.input_ids.shape[1] - 1)

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.ends.sum())

    def take(self, rows: Sequence[int]) -> Rollout:
        """Some of the answers, padded to the longest of them only."""
        index = torch.tensor(rows, dtype=torch.int64)
        length = int(self.ends[index].max())
        columns = {"input_ids": length, **dict.fromkeys(_BY_TOKEN, length - 1)}
        return self._map(lambda name, value: value[index, : columns[name]] if name in columns else value[index])

    def to(self, device: torch.device) -> Rollout:
        """The same on a device."""
        return self._map(lambda _, value: value.to(device))

    def cut(self, rows: Sequence[int], size: int) -> list[list[int]]:
        """Numbers of answers in micro-batches of `size`, those of like length together."""
        ends = self.ends.tolist()
        ordered = sorted(rows, key=lambda row: ends[row])
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def state_dict(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def _map(self, change: Callable[[str, Tensor], Tensor]) -> Rollout:
        return replace(self, **{name: change(name, value) for name, value in self.state_dict().items()})


def new_rollout(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    finished: Sequence[bool],
    rewards: Tensor,
    parts: Tensor,
) -> Rollout:
    """Answers and rewards, advantages still zero."""
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    input_ids = pad(rows, 0)
    return Rollout(
        input_ids=input_ids,
        begins=torch.tensor([len(prompt) for prompt in prompts]),
        ends=torch.tensor([len(row) for row in rows]),
        finished=torch.tensor(finished),
        counted=torch.ones(len(rows), dtype=torch.bool),
        rewards=rewards,
        parts=parts,
        advantages=torch.zeros(len(rows), input_ids.shape[1] - 1),
    )
