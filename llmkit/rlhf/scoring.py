"""What answers are worth: reward functions and a reward model, weighted and added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmkit.model.transformer import Transformer
from llmkit.rlhf.encoding import Prompt, encode_answer, pad, span_mask
from llmkit.rlhf.rewards import RewardFunction
from llmkit.tokenizer.tokenizer import Tokenizer

REWARD_MODEL = "reward_model"
_SCORED_AT_ONCE = 64


@dataclass(frozen=True)
class Scores:
    """What answers are worth.

    Args:
        rewards: fp32 [answers], the weighted sum.
        parts: fp32 [answers, functions], unweighted; NaN where a function does not apply.
    """

    rewards: Tensor
    parts: Tensor


class RewardModelScorer:
    """Scores of a reward model, which reads prompt and answer as its own training showed them: rendered by the chat
    template, the answer ended.

    Args:
        model: with a reward head.
        tokenizer: its own, the same as the policy's.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        """fp32 [answers] on the CPU. Of a conversation beyond the model's context the end is read."""
        context = self.model.config.context
        rows = [
            encode_answer(self.tokenizer, prompt.messages, text).ids[-context:]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        device = next(self.model.parameters()).device
        found = torch.empty(len(rows))
        for start in range(0, len(order), _SCORED_AT_ONCE):
            chunk = order[start : start + _SCORED_AT_ONCE]
            input_ids = pad([rows[row] for row in chunk], 0).to(device)
            lengths = torch.tensor([len(rows[row]) for row in chunk], device=device)
            attention_mask = span_mask(torch.zeros_like(lengths), lengths, input_ids.shape[1]).long()
            found[chunk] = self.model(input_ids, attention_mask).float().cpu()
        return found


class Scorer:
    """All that rewards answers in one stage.

    Args:
        functions: reward functions.
        reward_model: scores answers too, with the weight `reward_model_weight`.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        reward_model: RewardModelScorer | None = None,
        reward_model_weight: float = 1.0,
    ) -> None:
        self.functions, self.reward_model = list(functions), reward_model
        weights = [function.weight for function in functions]
        self.weights = torch.tensor(weights + ([reward_model_weight] if reward_model is not None else []))

    @property
    def names(self) -> list[str]:
        """Names of the parts, a number behind those of functions that occur twice."""
        seen: Counter[str] = Counter()
        names = []
        for function in self.functions:
            seen[function.name] += 1
            repeat = seen[function.name]
            names.append(function.name if repeat == 1 else f"{function.name}_{repeat}")
        return names + ([REWARD_MODEL] if self.reward_model is not None else [])

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Scores:
        """Worth of answers, each to the prompt at its place."""
        rows = [
            [
                function.score(prompt.text, text, prompt.reference) if function.applies(prompt.task) else torch.nan
                for function in self.functions
            ]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        parts = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(self.functions))
        if self.reward_model is not None:
            parts = torch.cat([parts, self.reward_model.score(prompts, texts)[:, None]], dim=1)
        return Scores((parts.nan_to_num(nan=0.0) * self.weights).sum(-1), parts)
