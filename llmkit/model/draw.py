"""Drawing the next token of many sequences at once.

Shapes: B sequences, V vocabulary, C candidate tokens, S tokens of a sequence so far, P parts of a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llmkit.model.sampling import Sampling

# First guess of how many tokens a nucleus holds; more are sorted only where it holds more.
_NUCLEUS_GUESS = 64
# Rows are searched part by part: the parts' largest values or sums first, then one part.
_PART = 128


class Drawn(NamedTuple):
    """The next token of each sequence: ids int64 [B], their log-probabilities under the model, and under the
    distribution that they were drawn from, fp32 [B]."""

    tokens: Tensor
    logprobs: Tensor
    sampling_logprobs: Tensor


def uniforms(seed: int, key: int, sample: int, count: int) -> Tensor:
    """The draws of one answer: float64 [count] in [0, 1), a function of the arguments alone.

    A longer answer continues the draws of a shorter one.
    """
    digest = hashlib.sha256(f"{seed}/{key}/{sample}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def draw_rows(
    logits_BV: Tensor, uniforms_B: Tensor, samplings: Sequence[Sampling], history_BS: Tensor | None = None
) -> Drawn:
    """`draw` for rows that may differ in their settings; those that agree are drawn together."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, sampling in enumerate(samplings):
        groups.setdefault(sampling.distribution, []).append(row)
    if len(groups) == 1:
        return draw(logits_BV, uniforms_B, samplings[0], history_BS)
    made = Drawn(torch.empty_like(uniforms_B, dtype=torch.int64), *torch.empty_like(logits_BV[:, :2]).unbind(1))
    for listed in groups.values():
        rows = torch.tensor(listed, device=logits_BV.device)
        history = None if history_BS is None else history_BS[rows]
        drawn = draw(logits_BV[rows], uniforms_B[rows], samplings[listed[0]], history)
        for whole, part in zip(made, drawn, strict=True):
            whole[rows] = part
    return made


def draw(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling, history_BS: Tensor | None = None) -> Drawn:
    """The next token of each sequence.

    Args:
        logits_BV: fp32 [B, V].
        uniforms_B: float64 [B] in [0, 1): where in the cumulative distribution to draw; unused at temperature 0.
        sampling: temperature and filters.
        history_BS: the tokens of prompt and answer so far, which a repetition penalty needs.
    """
    scores_BV = penalised(logits_BV, history_BS, sampling.repetition_penalty)
    if sampling.temperature == 0:
        tokens_B = _argmax(scores_BV)
        return Drawn(tokens_B, _logprobs(logits_BV, tokens_B), torch.zeros_like(logits_BV[:, 0]))
    scaled_BV = scores_BV if sampling.temperature == 1 else scores_BV / sampling.temperature
    if sampling.top_k is None and sampling.top_p == 1 and sampling.min_p == 0:
        log_BV = torch.log_softmax(scaled_BV, dim=-1)
        tokens_B, _ = _invert(log_BV.exp(), uniforms_B)
        sampling_logprobs_B = log_BV.gather(1, tokens_B[:, None])[:, 0]
        unchanged = scaled_BV is logits_BV
        return Drawn(
            tokens_B, sampling_logprobs_B if unchanged else _logprobs(logits_BV, tokens_B), sampling_logprobs_B
        )
    probabilities_BC, candidates_BC = filtered(scaled_BV, sampling)
    places_B, sampling_logprobs_B = _invert(probabilities_BC, uniforms_B)
    tokens_B = places_B if candidates_BC is None else candidates_BC.gather(1, places_B[:, None])[:, 0]
    return Drawn(tokens_B, _logprobs(logits_BV, tokens_B), sampling_logprobs_B)


def penalised(logits_BV: Tensor, history_BS: Tensor | None, penalty: float) -> Tensor:
    """Scores with those of tokens seen before divided by the penalty, or multiplied where negative (Keskar et al. 2019,
    in the form of `transformers`)."""
    if penalty == 1:
        return logits_BV
    assert history_BS is not None, "a repetition penalty needs the tokens so far"
    seen_BS = logits_BV.gather(1, history_BS)
    return logits_BV.scatter(1, history_BS, torch.where(seen_BS < 0, seen_BS * penalty, seen_BS / penalty))


def filtered(scaled_BV: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Unnormalised probabilities after top-k, top-p and min-p, in this order, and the ids that they belong to.

    Returns:
        Probabilities [B, C], zero where filtered out; ids int64 [B, C], or None where they are 0, 1, 2, ...
    """
    if sampling.top_k is not None:
        values_BC, candidates_BC = scaled_BV.topk(min(sampling.top_k, scaled_BV.shape[1]), dim=-1)
        probabilities_BC = torch.softmax(values_BC, dim=-1)
    elif sampling.top_p < 1:
        probabilities_BC, candidates_BC = _nucleus_candidates(torch.softmax(scaled_BV, dim=-1), sampling.top_p)
    else:
        probabilities_BC, candidates_BC = torch.softmax(scaled_BV, dim=-1), None
    if sampling.top_p < 1:
        before_BC = probabilities_BC.cumsum(dim=-1, dtype=torch.float64) - probabilities_BC
        probabilities_BC = probabilities_BC.masked_fill(before_BC >= sampling.top_p, 0.0)
    if sampling.min_p > 0:
        least_B1 = sampling.min_p * probabilities_BC.amax(dim=-1, keepdim=True)
        probabilities_BC = probabilities_BC.masked_fill(probabilities_BC < least_B1, 0.0)
    return probabilities_BC, candidates_BC


def _nucleus_candidates(probabilities_BV: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Probabilities and ids of the most likely tokens, sorted, enough of them to reach `top_p` in each row."""
    vocabulary = probabilities_BV.shape[1]
    count = min(_NUCLEUS_GUESS, vocabulary)
    while True:
        sorted_BC, candidates_BC = probabilities_BV.topk(count, dim=-1)
        if count == vocabulary or bool((sorted_BC.sum(dim=-1) > top_p).all()):
            return sorted_BC, candidates_BC
        count = min(4 * count, vocabulary)


def _argmax(scores_BV: Tensor) -> Tensor:
    """The first of the largest, int64 [B]; several times faster than `argmax`, which is not vectorised."""
    parts = scores_BV.shape[1] // _PART
    if parts < 8 or scores_BV.device.type != "cpu":
        return scores_BV.argmax(dim=-1)
    whole_BPC = scores_BV[:, : parts * _PART].unflatten(1, (parts, _PART))
    part_B1 = whole_BPC.amax(dim=-1).argmax(dim=-1, keepdim=True)
    best_BC = whole_BPC.gather(1, part_B1[..., None].expand(-1, -1, _PART))[:, 0]
    values_B, places_B = best_BC.max(dim=-1)
    tokens_B: Tensor = part_B1[:, 0] * _PART + places_B
    rest_BC = scores_BV[:, parts * _PART :]
    if rest_BC.shape[1]:
        rest_values_B, rest_places_B = rest_BC.max(dim=-1)
        tokens_B = torch.where(rest_values_B > values_B, parts * _PART + rest_places_B, tokens_B)
    return tokens_B


def _invert(probabilities_BC: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """Places drawn by inverting the cumulative distribution of unnormalised probabilities, and their log-probabilities.

    Rows are summed in parts: first the part is found, then the place in it. A place of probability zero is never drawn.
    """
    padded_BC = torch.nn.functional.pad(probabilities_BC, (0, -probabilities_BC.shape[1] % _PART))
    parts_BPC = padded_BC.unflatten(1, (-1, _PART))
    ends_BP = parts_BPC.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    total_B1 = ends_BP[:, -1:]
    targets_B1 = uniforms_B[:, None] * total_B1
    part_B1 = torch.searchsorted(ends_BP, targets_B1, right=True).clamp(max=ends_BP.shape[1] - 1)
    before_B1 = torch.where(part_B1 > 0, ends_BP.gather(1, (part_B1 - 1).clamp(min=0)), 0.0)
    inner_BC = parts_BPC.gather(1, part_B1[..., None].expand(-1, -1, _PART))[:, 0].cumsum(dim=-1, dtype=torch.float64)
    # The two ways of summing may differ in the last bit: stay below the part's own total.
    below_B1 = torch.nextafter(inner_BC[:, -1:], torch.zeros_like(total_B1))
    inside_B1 = torch.searchsorted(inner_BC, torch.minimum(targets_B1 - before_B1, below_B1), right=True)
    places_B1 = part_B1 * _PART + inside_B1
    drawn_B1 = probabilities_BC.gather(1, places_B1)
    return places_B1[:, 0], (drawn_B1 / total_B1).log()[:, 0].to(torch.float32)


def _logprobs(logits_BV: Tensor, tokens_B: Tensor) -> Tensor:
    return torch.log_softmax(logits_BV, dim=-1).gather(1, tokens_B[:, None])[:, 0]
