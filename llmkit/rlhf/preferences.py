"""Learning from preferences: batches of pairs, and the objectives of reward models and of DPO.

Shapes: P pairs, B = 2 P rows (all chosen ones, then all rejected ones), L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmkit.console import progress
from llmkit.data.sampling import EpochSampler
from llmkit.model.transformer import Transformer
from llmkit.rlhf.config import BradleyTerryConfig, DPOConfig
from llmkit.rlhf.encoding import Pair, pad, span_mask
from llmkit.rlhf.forward import answer_logprobs
from llmkit.rlhf.losses.preference import bradley_terry_loss, dpo_loss
from llmkit.store.files import sync_file
from llmkit.train.contract import WHOLE, LossOutput, Objective, Part, StatelessSource


@dataclass(frozen=True)
class PairBatch:
    """Pairs as tensors.

    Args:
        input_ids: int64 [B, L].
        lengths: int64 [B].
        begins, ends: int64 [B], where the answers stand.
        ref_logprobs: [P, 2], log-probability of the chosen and the rejected answer under the reference (DPO).
    """

    input_ids: Tensor
    lengths: Tensor
    begins: Tensor
    ends: Tensor
    ref_logprobs: Tensor | None = None

    @property
    def pairs(self) -> int:
        """P."""
        return len(self.input_ids) // 2

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.lengths.sum())

    def to(self, device: torch.device) -> PairBatch:
        """The same on a device."""
        return PairBatch(
            self.input_ids.to(device),
            self.lengths.to(device),
            self.begins.to(device),
            self.ends.to(device),
            None if self.ref_logprobs is None else self.ref_logprobs.to(device),
        )


def collate(pairs: Sequence[Pair], ref_logprobs: Tensor | None = None) -> PairBatch:
    """Pairs as one batch."""
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    return PairBatch(
        pad([answer.ids for answer in answers], 0),
        torch.tensor([len(answer.ids) for answer in answers]),
        torch.tensor([answer.begin for answer in answers]),
        torch.tensor([answer.end for answer in answers]),
        ref_logprobs,
    )


class PairSource(StatelessSource):
    """Batches of pairs, each epoch in an order of its own: a pure function of seed and step.

    Args:
        pairs: all of them.
        batch: pairs in each optimizer step.
        micro_batch: pairs that go through the model at once.
        seed: of the order.
        ref_logprobs: [pairs, 2], for DPO.
        part: this rank's pairs of each batch.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        batch: int,
        micro_batch: int,
        seed: int,
        ref_logprobs: Tensor | None = None,
        part: Part = WHOLE,
    ) -> None:
        self.pairs, self.micro_batch, self.ref_logprobs = pairs, micro_batch, ref_logprobs
        self.part = part
        self.sampler = EpochSampler(len(pairs), batch, seed)

    def batches(self, step: int) -> Sequence[PairBatch]:
        """The micro-batches of a step, pairs of like length together."""
        return list(self.cut(self.rows(step)))

    def rows(self, step: int) -> list[int]:
        """Numbers of this rank's pairs of a step."""
        indices: list[int] = self.sampler.indices(step).tolist()
        return indices[self.part.rows(len(indices))]

    def cut(self, rows: Sequence[int]) -> Iterator[PairBatch]:
        """Pairs by their numbers, in micro-batches."""
        for chunk in by_length(rows, lambda row: self.pairs[row].longest, self.micro_batch):
            ref = None if self.ref_logprobs is None else self.ref_logprobs[chunk]
            yield collate([self.pairs[row] for row in chunk], ref)

    def used(self, steps: int) -> list[int]:
        """Numbers of this rank's pairs that the first `steps` steps read, each once."""
        return sorted({row for step in range(steps) for row in self.rows(step)})


def by_length(rows: Sequence[int], length: Callable[[int], int], size: int) -> list[list[int]]:
    """Rows in chunks of `size`, those of like length together, so that little is padded."""
    ordered = sorted(rows, key=length)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


@dataclass(frozen=True)
class RewardModelObjective:
    """Bradley-Terry loss of a scorer, each pair in one forward pass."""

    settings: BradleyTerryConfig

    def loss(self, model: nn.Module, batch: PairBatch) -> LossOutput:
        """Sum over pairs; metrics `accuracy`, `margin` and the scores of both sides."""
        tokens, batch = batch.tokens, batch.to(next(model.parameters()).device)
        attention_mask = span_mask(torch.zeros_like(batch.lengths), batch.lengths, batch.input_ids.shape[1])
        chosen, rejected = model(batch.input_ids, attention_mask.long()).float().chunk(2)
        losses = bradley_terry_loss(chosen, rejected, self.settings.margin, self.settings.centering)
        count = float(batch.pairs)
        metrics = {
            "accuracy": ((chosen > rejected).float().sum(), count),
            "margin": ((chosen - rejected).detach().sum(), count),
            "chosen_score": (chosen.detach().sum(), count),
            "rejected_score": (rejected.detach().sum(), count),
        }
        return LossOutput(losses.sum(), count, metrics, tokens)


@dataclass(frozen=True)
class DPOObjective:
    """Direct preference optimization against log-probabilities of the reference that come with the batch.

    The model stays in evaluation mode: under dropout an unchanged policy would differ from the reference.
    """

    settings: DPOConfig

    def loss(self, model: nn.Module, batch: PairBatch) -> LossOutput:
        """Sum over pairs; metrics `accuracy` and `margin` of the implicit rewards, and what they are made of."""
        assert isinstance(model, Transformer)
        model.eval()
        tokens, batch = batch.tokens, batch.to(next(model.parameters()).device)
        assert batch.ref_logprobs is not None
        chosen, rejected = summed_logprobs(model, batch).chunk(2)
        settings = self.settings
        terms = dpo_loss(
            chosen,
            rejected,
            batch.ref_logprobs[:, 0],
            batch.ref_logprobs[:, 1],
            beta=settings.beta,
            loss=settings.loss,
            label_smoothing=settings.label_smoothing,
        )
        count = float(batch.pairs)
        margins = terms.chosen_rewards - terms.rejected_rewards
        metrics = {
            "accuracy": ((margins > 0).float().sum(), count),
            "margin": (margins.sum(), count),
            "chosen_reward": (terms.chosen_rewards.sum(), count),
            "rejected_reward": (terms.rejected_rewards.sum(), count),
            "chosen_logprob": (chosen.detach().sum(), count),
            "rejected_logprob": (rejected.detach().sum(), count),
        }
        return LossOutput(terms.losses.sum(), count, metrics, tokens)


def summed_logprobs(model: Transformer, batch: PairBatch) -> Tensor:
    """Log-probability of each row's answer, summed over its tokens, end-of-turn token included: [B]."""
    # Position p of the mask is about token p + 1.
    mask = span_mask(batch.begins - 1, batch.ends - 1, batch.input_ids.shape[1] - 1)
    return answer_logprobs(model, batch.input_ids, mask, 1.0).sum(-1)


@torch.no_grad()
def reference_logprobs(
    model: Transformer, source: PairSource, rows: Sequence[int], label: str, cache: Path | None = None
) -> Tensor:
    """Log-probabilities of pairs under a model that does not change; NaN for pairs that are not asked for.

    They are computed once: the reference needs no memory beside the policy that it started as.

    Args:
        model: in evaluation mode.
        source: the pairs.
        rows: numbers of the pairs wanted.
        label: of the progress shown.
        cache: file to keep them in, and to take them from where it is there.

    Returns:
        fp32 [pairs, 2] on the CPU: chosen, rejected.
    """
    if cache is not None and cache.is_file():
        stored: Tensor = load_file(cache)["logprobs"]
        return stored
    device = next(model.parameters()).device
    found = torch.full((len(source.pairs), 2), torch.nan)
    with progress(label, len(rows)) as bar:
        for chunk in by_length(rows, lambda row: source.pairs[row].longest, source.micro_batch):
            sums = summed_logprobs(model, collate([source.pairs[row] for row in chunk]).to(device))
            found[chunk] = torch.stack(sums.chunk(2), dim=1).float().cpu()
            bar.advance(len(chunk))
    if cache is not None:
        beside = cache.with_name(f".{cache.name}.partial")
        save_file({"logprobs": found}, beside)
        sync_file(beside)
        beside.replace(cache)
    return found


def evaluate(model: nn.Module, objective: Objective, batches: Sequence[PairBatch]) -> Mapping[str, float]:
    """Loss and metrics over batches."""
    totals: dict[str, list[float]] = {}
    for batch in batches:
        output = objective.loss(model, batch)
        for name, (total, weight) in {**output.metrics, "loss": (output.sum, output.weight)}.items():
            entry = totals.setdefault(name, [0.0, 0.0])
            entry[0] += float(total)
            entry[1] += float(weight)
    return {name: total / weight for name, (total, weight) in totals.items() if weight}
